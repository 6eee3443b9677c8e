"""STAC items (`pip install ".[stac]"`): the bands of an item as one scene, and the item of a result.

    item = read_item(Path("item.json"))
    options = replace(options, allow_outside=True, nodata=item.also_nodata)
    with scene_of(item) as scene:               # a VRT of the item's red, green, blue and, if it has it, nir
        remove_from_scene(scene, Path("clear.tif"), pipeline, options)
    write_derived(item, Path("clear.tif"), max_pixels=10**9)      # clear.json

Only local files are read, and only below the item's folder unless more is allowed: an item is a text that names
files, and may come from anywhere.
"""

from declouder.stac.derived import derived_path, is_outdated, write_derived
from declouder.stac.reading import SourceItem, read_item, scene_of

__all__ = ["SourceItem", "derived_path", "is_outdated", "read_item", "scene_of", "write_derived"]
