"""Bands that lie in several files, read as one raster: a VRT of our own, as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import rasterio
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
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

    None stands for what the file itself says. The bands of the file whose numbers are in `colors` hold colours,
    even if the file calls one of them alpha, as many programs do with the fourth of four.
    """

    path: Path
    number: int = 1
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None
    colors: tuple[int, ...] = ()


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
    """Size, place, CRS (WKT) and dtype of a file, and what the numbers of one of its bands mean."""

    width: int
    height: int
    place: Affine
    crs: str
    dtype: str
    nodata: float | None = None
    scale: float = 1.0
    offset: float = 0.0

    @property
    def parsed_crs(self) -> CRS | None:
        """The CRS, if there is one."""
        return CRS.from_wkt(self.crs) if self.crs else None

    def is_as(self, other: Grid) -> bool:
        """Return whether size, place, CRS and dtype are the same."""
        ours, theirs = ((g.width, g.height, g.crs, g.dtype) for g in (self, other))
        return ours == theirs and same_corners(self.place, other.place, width=self.width, height=self.height)

    def __str__(self) -> str:
        return f"{self.width} x {self.height} px of {self.dtype} at {self.place.c:.10g}, {self.place.f:.10g}"


def grid_of(band: BandFile) -> Grid:
    """Return the grid of the file of a band, and what its numbers mean.

    Raises:
        RasterError: if it cannot be opened, or has no such band.
    """
    driver = driver_of(band.path)
    try:
        check_company(band.path, driver)
        with rasterio.open(plain_name(band.path), driver=driver) as dataset:
            if not 1 <= band.number <= dataset.count:
                raise RasterError(
                    f"{band.path} has {dataset.count} bands, band {band.number} is wanted; get it again, or mend"
                    " what names its bands"
                )
            flags = dataset.mask_flag_enums[band.number - 1]
            alpha = {number for number, color in enumerate(dataset.colorinterp, 1) if color is ColorInterp.alpha}
            is_color = MaskFlags.alpha in flags and alpha <= {*band.colors}
            if MaskFlags.per_dataset in flags and MaskFlags.nodata not in flags and not is_color:
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
                dataset.nodatavals[band.number - 1] if band.nodata is None else band.nodata,
                dataset.scales[band.number - 1] if band.scale is None else band.scale,
                dataset.offsets[band.number - 1] if band.offset is None else band.offset,
            )
    except GDAL_ERRORS as error:
        raise RasterError(
            f"{band.path} cannot be opened ({one_line(error)}); it is damaged: get it again"
        ) from error


def _band(number: int, name: str, band: BandFile, grid: Grid) -> str:
    return (
        f'<VRTRasterBand dataType="{_KINDS[grid.dtype]}" band="{number}"><Description>{escape(name)}</Description>'
        + (f"<ColorInterp>{name.capitalize()}</ColorInterp>" if name in RGB else "")
        + ("" if grid.nodata is None else f"<NoDataValue>{grid.nodata}</NoDataValue>")
        + (f"<Offset>{grid.offset:.17g}</Offset>" if grid.offset != 0 else "")
        + (f"<Scale>{grid.scale:.17g}</Scale>" if grid.scale != 1 else "")
        + f'<SimpleSource><SourceFilename relativeToVRT="0">{escape(str(band.path.resolve()))}</SourceFilename>'
        f"<SourceBand>{band.number}</SourceBand></SimpleSource></VRTRasterBand>"
    )
