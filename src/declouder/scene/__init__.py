"""Clouds removed from a whole scene: windows -> pipeline -> journal -> mosaic -> raster.

    report = remove_from_scene(Path("cloudy.tif"), Path("clear.tif"), pipeline, SceneOptions(steps=10))

The scene is read and restored window by window (windows, inputs, inference); each finished window goes into a
journal beside the output, so that a killed run can go on. When all are there they are blended and written area by
area (outputs), so memory does not grow with the scene. One scale serves the whole scene. Samples without data
(nodata, NaN, masked, transparent) stay as they are; before the model sees a window they are filled from their
neighbours. The diffusion's noise belongs to places in the scene, not to windows: overlapping windows start from the
same noise and agree where they overlap.
"""

from declouder.bands import BandChoice, choose_bands
from declouder.noise import scene_noise
from declouder.scene.inputs import auto_scale, fill_invalid, open_scene
from declouder.scene.options import SceneOptions, SceneReport
from declouder.scene.outputs import restored_dn
from declouder.scene.removal import check_outputs, remove_from_scene

__all__ = [
    "BandChoice",
    "SceneOptions",
    "SceneReport",
    "auto_scale",
    "check_outputs",
    "choose_bands",
    "fill_invalid",
    "open_scene",
    "remove_from_scene",
    "restored_dn",
    "scene_noise",
]
