"""Rasters in and out, piece by piece: the only package that knows rasterio (GDAL).

    with open_raster("in.tif") as reader, create_raster("out.tif", like=reader.info) as writer:
        writer.write(reader.read(rows, cols), rows, cols)

`RasterInfo` holds what a raster says of itself besides its pixels: CRS, transform, nodata, band names, tags.
A new raster is made `like` it. It is written under a temporary name in the same folder and gets its own name
when it is complete, so whoever sees `out.tif` sees all of it.
"""

from declouder.raster.aligned import AlignedReader, open_aligned, read_numbers
from declouder.raster.checks import MOST_PIXELS, MOST_PIXELS_IN_MEMORY, as_stored
from declouder.raster.gdal import (
    DTYPES,
    INPUT_SUFFIXES,
    OUTPUT_DRIVERS,
    check_name,
    lies_there,
    not_georeferenced_is_fine,
)
from declouder.raster.info import RasterInfo, file_stamps, files_identity, written_over
from declouder.raster.outputs import check_fits, check_folder, check_output, output_name
from declouder.raster.places import lie_alike
from declouder.raster.reading import RasterReader, open_raster
from declouder.raster.sentinel2 import is_safe
from declouder.raster.sources import check_source
from declouder.raster.stack import BandFile, grid_of, vrt_of_bands
from declouder.raster.undeclared import find_undeclared
from declouder.raster.writing import BLOCK_PX, RasterWriter, create_raster, remove_unfinished_rasters

__all__ = [
    "BLOCK_PX",
    "DTYPES",
    "INPUT_SUFFIXES",
    "MOST_PIXELS",
    "MOST_PIXELS_IN_MEMORY",
    "OUTPUT_DRIVERS",
    "AlignedReader",
    "BandFile",
    "RasterInfo",
    "RasterReader",
    "RasterWriter",
    "as_stored",
    "check_fits",
    "check_folder",
    "check_name",
    "check_output",
    "check_source",
    "create_raster",
    "file_stamps",
    "files_identity",
    "find_undeclared",
    "grid_of",
    "is_safe",
    "lie_alike",
    "lies_there",
    "not_georeferenced_is_fine",
    "open_aligned",
    "open_raster",
    "output_name",
    "read_numbers",
    "remove_unfinished_rasters",
    "vrt_of_bands",
    "written_over",
]
