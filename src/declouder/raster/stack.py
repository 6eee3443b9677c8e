"""Bands that lie in several files, read as one raster: a VRT of our own, as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import rasterio
from rasterio.enums import MaskFlags
from rasterio.transform import Affine

from declouder.errors import RasterError
from declouder.raster.company import check_company, plain_name
from declouder.raster.gdal import DTYPES, GDAL_ERRORS, driver_of, one_line
from declouder.raster.places import same_corners
from declouder.rgb import RGB

# "uint16" is UInt16 to GDAL.
_KINDS = {name: name.capitalize().replace("Uint", "UInt") for name in DTYPES} | {"uint8": "Byte"}


@dataclass(frozen=True)
class BandFile:
    """One band of a file, and what its numbers mean: value = number * scale + offset.

    None stands for what the file itself says.
    """

    path: Path
    number: int = 1
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None


def vrt_of_bands(files: Mapping[str, Path | BandFile]) -> str:
    """Return a VRT, as text, that stacks bands of one grid under the given names; red, green and blue are colours.

    Raises:
        RasterError: if a file cannot be read, or they are not of one size, place, CRS and dtype.
    """
    bands = {name: file if isinstance(file, BandFile) else BandFile(file) for name, file in files.items()}
    grids = {name: grid_of(band) for name, band in bands.items()}
    name, grid = next(iter(grids.items()))
    for other, its in grids.items():
        if not its.is_as(grid):
            raise RasterError(
                f"{bands[other].path} is {its}, {bands[name].path} is {grid}; give bands of one grid and dtype "
                f"(not {other} of another resolution), or resample them first: gdalwarp"
            )
    if grid.dtype not in _KINDS:
        raise RasterError(f"{bands[name].path} is of dtype {grid.dtype}; give bands of {', '.join(_KINDS)}")
    text = "".join(_band(number, name, band, grids[name]) for number, (name, band) in enumerate(bands.items(), 1))
    srs = f"<SRS>{escape(grid.crs)}</SRS>" if grid.crs else ""
    place = ",".join(f"{value:.17g}" for value in grid.place.to_gdal())
    return (
        f'<VRTDataset rasterXSize="{grid.width}" rasterYSize="{grid.height}">{srs}'
        f"<GeoTransform>{place}</GeoTransform>{text}</VRTDataset>"
    )


@dataclass(frozen=True)
class Grid:
    """Size, place, CRS (WKT) and dtype of a file, and what the band's numbers mean by what the file says."""

    width: int
    height: int
    place: Affine
    crs: str
    dtype: str
    nodata: float | None = None
    scale: float = 1.0
    offset: float = 0.0

    def is_as(self, other: Grid) -> bool:
        """Return whether size, place, CRS and dtype are the same."""
        ours, theirs = ((g.width, g.height, g.crs, g.dtype) for g in (self, other))
        return ours == theirs and same_corners(self.place, other.place, width=self.width, height=self.height)

    def __str__(self) -> str:
        return f"{self.width} x {self.height} px of {self.dtype} at {self.place.c:.10g}, {self.place.f:.10g}"


def grid_of(band: BandFile) -> Grid:
    """Return the grid of the file of a band.

    Raises:
        RasterError: if it cannot be opened, or has no such band.
    """
    driver = driver_of(band.path)
    try:
        check_company(band.path, driver)
        with rasterio.open(plain_name(band.path), driver=driver) as dataset:
            if not 1 <= band.number <= dataset.count:
                raise RasterError(
                    f"{band.path} has {dataset.count} bands, band {band.number} is wanted; get it again"
                )
            flags = dataset.mask_flag_enums[band.number - 1]
            if MaskFlags.per_dataset in flags and MaskFlags.nodata not in flags:
                raise RasterError(
                    f"{band.path} has a mask or alpha of its own, which would be lost beside other bands; make it"
                    f" nodata: gdal_translate -mask none -a_nodata 0"
                )
            if not dataset.crs and (dataset.gcps[0] or dataset.rpcs):
                raise RasterError(
                    f"{band.path} has its place by control points or an RPC model, which would be lost beside other"
                    f" bands; give it a grid first: gdalwarp"
                )
            return Grid(
                dataset.width,
                dataset.height,
                dataset.transform,
                dataset.crs.to_wkt() if dataset.crs else "",
                dataset.dtypes[0],
                dataset.nodatavals[band.number - 1],
                dataset.scales[band.number - 1],
                dataset.offsets[band.number - 1],
            )
    except GDAL_ERRORS as error:
        raise RasterError(
            f"{band.path} cannot be opened ({one_line(error)}); it is damaged: get it again"
        ) from error


def _band(number: int, name: str, band: BandFile, grid: Grid) -> str:
    nodata: Any = grid.nodata if band.nodata is None else band.nodata
    scale = grid.scale if band.scale is None else band.scale
    offset = grid.offset if band.offset is None else band.offset
    return (
        f'<VRTRasterBand dataType="{_KINDS[grid.dtype]}" band="{number}"><Description>{escape(name)}</Description>'
        + (f"<ColorInterp>{name.capitalize()}</ColorInterp>" if name in RGB else "")
        + ("" if nodata is None else f"<NoDataValue>{nodata}</NoDataValue>")
        + (f"<Offset>{offset:.17g}</Offset>" if offset != 0 else "")
        + (f"<Scale>{scale:.17g}</Scale>" if scale != 1 else "")
        + f'<SimpleSource><SourceFilename relativeToVRT="0">{escape(str(band.path.resolve()))}</SourceFilename>'
        f"<SourceBand>{band.number}</SourceBand></SimpleSource></VRTRasterBand>"
    )
