"""What a raster says of itself besides its pixels."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rasterio.enums import MaskFlags

from declouder.errors import RasterError
from declouder.raster.gdal import lies_there
from declouder.raster.xml import parsed_xml

log = logging.getLogger(__name__)

# Namespaces that GDAL makes up from the file's layout, or that travel by another way (RPC).
_DERIVED_NAMESPACES = {
    "IMAGE_STRUCTURE",
    "DERIVED_SUBDATASETS",
    "SUBDATASETS",
    "RPC",
    "TIFF",
    "COLOR_PROFILE",
    "OVERVIEWS",
}
# Numbers about the old pixels would be wrong about the new ones.
_STALE_TAGS = ("STATISTICS_", "TIFFTAG_MINSAMPLEVALUE", "TIFFTAG_MAXSAMPLEVALUE")

HISTOGRAM = {
    *("Histograms", "HistItem", "HistMin", "HistMax", "BucketCount"),
    *("IncludeOutOfRange", "Approximate", "HistCounts"),
}
_MOST_AUX_BYTES = 64 * 2**20

Tags = dict[str | None, dict[str, str]]


@dataclass(frozen=True)
class RasterInfo:
    """What a raster says of itself besides its pixels; lists have one entry a band."""

    path: Path
    files: tuple[Path, ...]  # all that its pixels are read from
    driver: str
    height: int
    width: int
    count: int
    dtype: str
    nodata: float | None  # of all bands: a GeoTIFF has one; rasterio gives none that pixels cannot be
    nodata_color: tuple[float, ...] | None  # as of a PNG: pixels hold no data whose bands are all these numbers
    crs: Any
    transform: Any
    gcps: tuple[list[Any], Any]  # ground control points and their CRS
    rpcs: Any
    descriptions: tuple[str | None, ...]
    colors: tuple[str, ...]  # names of rasterio's ColorInterp
    units: tuple[str | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    tags: Tags  # by namespace; None is the default one
    band_tags: tuple[Tags, ...]
    compression: str | None
    has_mask: bool  # a mask of its own, besides nodata and alpha
    icc_profile: str | None  # what its colours mean on a screen, in base 64
    images: int = 1  # in the file; all but the first are left out

    @property
    def alpha(self) -> int | None:
        """The 1-based number of the alpha band, if there is one."""
        return self.colors.index("alpha") + 1 if "alpha" in self.colors else None

    @property
    def is_georeferenced(self) -> bool:
        """Whether the raster says where on Earth it lies."""
        return bool(self.crs or self.gcps[0] or self.rpcs or not self.transform.is_identity)


def info_of(path: Path, dataset: Any, files: Sequence[Path] = ()) -> RasterInfo:
    """Return what an open rasterio dataset says of itself; its pixels come from `files`, or from `path` alone."""
    flags = dataset.mask_flag_enums[0]
    nameless = (None,) * dataset.count
    return RasterInfo(
        path=path,
        files=tuple(files) or (path,),
        driver=dataset.driver,
        height=dataset.height,
        width=dataset.width,
        count=dataset.count,
        dtype=dataset.dtypes[0],
        nodata=next((value for value in dataset.nodatavals if value is not None), None),
        crs=dataset.crs,
        transform=dataset.transform,
        gcps=dataset.gcps,
        rpcs=_legible(path, dataset, "rpcs", None),
        descriptions=_legible(path, dataset, "descriptions", nameless),
        colors=tuple(color.name for color in dataset.colorinterp),
        units=_legible(path, dataset, "units", nameless),
        scales=dataset.scales,
        offsets=dataset.offsets,
        tags=_tags_of(dataset, 0),
        band_tags=tuple(_tags_of(dataset, band) for band in dataset.indexes),
        compression=dataset.compression.value if dataset.compression else None,
        # A transparent colour looks like a mask; it is nodata, and its tag is kept.
        nodata_color=_color_of(dataset) if {MaskFlags.per_dataset, MaskFlags.nodata}.issubset(flags) else None,
        has_mask=MaskFlags.per_dataset in flags and not {MaskFlags.alpha, MaskFlags.nodata}.intersection(flags),
        icc_profile=dataset.tags(ns="COLOR_PROFILE").get("SOURCE_ICC_PROFILE"),
        images=max(1, len(dataset.subdatasets)),
    )


def _color_of(dataset: Any) -> tuple[float, ...]:
    """Return the transparent colour of a dataset that has one; what is no number is 0, as to GDAL."""
    color = []
    for word in dataset.tags().get("NODATA_VALUES", "").split():
        try:
            color.append(float(word))
        except ValueError:
            color.append(0.0)
    return tuple(color)


def _legible(path: Path, dataset: Any, what: str, instead: Any) -> Any:
    """Return what a dataset says, or `instead`, with a warning, where it cannot be read as text or lacks a part."""
    try:
        return getattr(dataset, what)
    except (UnicodeDecodeError, KeyError, ValueError) as error:
        _tell_once(f"{what} of {path} cannot be read ({error}) and are left out")
        return instead


@functools.lru_cache(maxsize=256)
def _tell_once(message: str) -> None:
    log.warning("%s", message)  # a scene is opened several times, to plan and to restore it


def _tags_of(dataset: Any, band: int) -> Tags:
    """Return the tags of a band (0: of the whole) by namespace, without what is about the old pixels."""
    found: Tags = {}
    for namespace in [None, *dataset.tag_namespaces(band)]:
        # "xml:" namespaces hold one document instead of key=value pairs.
        if namespace in _DERIVED_NAMESPACES or (namespace or "").startswith("xml:"):
            continue
        tags = dataset.tags(band, ns=namespace)
        # `ns` and `bidx` cannot be passed on: they are rasterio's own arguments.
        kept = {k: v for k, v in tags.items() if not k.startswith(_STALE_TAGS) and k not in {"ns", "bidx"}}
        if kept:
            found[namespace] = kept
    return found


def files_identity(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Return what tells the content of these files from that of others without reading all of it.

    What GDAL reads beside a file counts: a mask, a world file, and what an .aux.xml says but for statistics, which
    other programs write as they show an image.
    """
    return [_file_identity(path) | _beside_identity(path) for path in files]


def file_stamps(files: Sequence[Path]) -> dict[Path, tuple[int, int, int]]:
    """Return by path which file each is, how large, and when it was changed; for `written_over`."""
    stats = {path: path.stat() for path in files}
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def written_over(before: Mapping[Path, tuple[int, int, int]], *, opened_late: Collection[Path] = ()) -> Path | None:
    """Return one of the files that was changed in its place since `file_stamps`, or None.

    One that was deleted, or replaced by another of its name, is still read as it was by whoever has it open.

    Args:
        before: what `file_stamps` said.
        opened_late: files that nobody may have had open: replaced, they count as changed.
    """
    for path, stamp in before.items():
        with contextlib.suppress(OSError):
            now = file_stamps([path])[path]
            # Of another inode alone, with the same size and time, it is a copy of itself.
            if now[1:] != stamp[1:] and (now[0] == stamp[0] or path in opened_late):
                return path
    return None


def _file_identity(path: Path) -> dict[str, Any]:
    found = path.stat()
    with path.open("rb") as file:
        start = file.read(2**16)
        file.seek(max(0, found.st_size - 2**16))
        ends = hashlib.sha256(start + file.read(2**16)).hexdigest()
    return {"bytes": found.st_size, "changed_ns": found.st_mtime_ns, "ends": ends}


def world_files(path: Path) -> list[Path]:
    """Return the files beside an image that say where it lies, where it does not say so itself."""
    kind = path.suffix[1:]
    worlds = ["wld", *([f"{kind}w", f"{kind[0]}{kind[-1]}w"] if kind else [])]
    suffixes = sorted({case for world in worlds for case in (world.lower(), world.upper())})
    return [place for suffix in suffixes if lies_there(place := path.with_suffix(f".{suffix}"))]


def _beside_identity(path: Path) -> dict[str, Any]:
    mask = path.with_name(f"{path.name}.msk")
    places = [*([mask] if lies_there(mask) else []), *world_files(path)]
    found: dict[str, Any] = {place.name: _file_identity(place) for place in places}
    aux = path.with_name(f"{path.name}.aux.xml")
    if lies_there(aux) and (said := _besides_statistics(aux)):
        found[aux.name] = said
    return {"beside": found} if found else {}


def _besides_statistics(aux: Path) -> Any:
    """Return what tells what an .aux.xml says besides statistics; nothing if it says no more."""
    try:
        root = parsed_xml(aux, most_bytes=_MOST_AUX_BYTES, mend="delete it")
    except RasterError:
        return _file_identity(aux)
    said: list[Any] = []
    band = None
    for element in root.iter():
        band = element.get("band") if element.tag == "PAMRasterBand" else band
        is_statistic = element.tag in HISTOGRAM or element.get("key", "").startswith(_STALE_TAGS)
        is_frame = element.tag in {"PAMDataset", "PAMRasterBand"}
        is_frame |= element.tag == "Metadata" and not element.attrib
        if not (is_statistic or is_frame):
            said.append([band, element.tag, element.attrib, (element.text or "").strip()])
    return said and hashlib.sha256(json.dumps(said).encode()).hexdigest()
