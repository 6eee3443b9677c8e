"""Rasters in and out: what is kept, and what is refused with which words."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from rasterio._env import get_gdal_config
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.rpc import RPC
from rasterio.transform import Affine

from conftest import names_in, read_tif, write_tif
from declouder.errors import OutputError, RasterError
from declouder.raster import (
    check_output,
    create_raster,
    files_identity,
    open_raster,
    output_name,
    remove_unfinished_rasters,
)
from declouder.raster import reduced as reduced_module
from declouder.raster import writing as writing_module
from declouder.raster.gdal import CACHE_BYTES, MOST_CACHE_BYTES, gdal_settings
from declouder.raster.outputs import check_fits
from declouder.scaling import Scaling
from declouder.scene import SceneOptions, remove_from_scene


def copied(source: Path, output: Path, *, overwrite: bool = False, tile: int = 37) -> Path:
    """Copy a raster piece by piece, with pieces that fit no block."""
    with open_raster(source) as reader, create_raster(output, reader.info, overwrite=overwrite) as writer:
        for row in range(0, reader.info.height, tile):
            for col in range(0, reader.info.width, tile):
                rows = slice(row, min(row + tile, reader.info.height))
                cols = slice(col, min(col + tile, reader.info.width))
                writer.write(reader.read(rows, cols), rows, cols)
                if reader.info.has_mask:
                    writer.write_mask(reader.read_mask(rows, cols), rows, cols)
    return output


def test_geotiff_keeps_crs_transform_nodata_dtype_names_colours_scales_and_tags(rich_tif, tmp_path):
    output = copied(rich_tif, tmp_path / "copy.tif")
    with rasterio.open(rich_tif) as old, rasterio.open(output) as new:
        for name in (
            *("crs", "transform", "nodata", "dtypes", "count", "shape", "descriptions", "colorinterp"),
            *("scales", "offsets", "units", "compression"),
        ):
            assert getattr(new, name) == getattr(old, name), name
        assert new.tags()["acquired"] == "2020-01-01"
        assert new.tags()["AREA_OR_POINT"] == "Point"
        assert new.tags(ns="PROVIDER") == {"satellite": "one"}
        assert [new.tags(band)["wavelength"] for band in new.indexes] == ["401", "402", "403", "404", "405"]
        assert new.profile["tiled"]
        np.testing.assert_array_equal(new.read(), old.read())


def test_stale_statistics_are_not_carried_over(rich_tif, tmp_path):
    with rasterio.open(copied(rich_tif, tmp_path / "copy.tif")) as new:
        tags = [new.tags(), *(new.tags(band) for band in new.indexes)]
    assert not any(key.startswith("STATISTICS") for by_band in tags for key in by_band)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
def test_pixels_of_every_dtype_come_back_unchanged(dtype, tmp_path, rng):
    dn = (rng.standard_normal((2, 50, 60)) * 50).astype(dtype)
    np.testing.assert_array_equal(read_tif(copied(write_tif(tmp_path / "a.tif", dn), tmp_path / "b.tif")), dn)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("cog", [False, True])
@pytest.mark.parametrize("pixels_are", ["Area", "Point"])
def test_ground_control_points_are_kept_whatever_pixels_are(pixels_are, cog, tmp_path):
    path = tmp_path / "a.tif"
    points = [GroundControlPoint(r, c, 10 + c, 50 - r) for r, c in ((0, 0), (0, 9), (9, 0), (9, 9))]
    with rasterio.open(path, "w", "GTiff", 10, 10, 1, dtype="uint8") as dataset:
        dataset.write(np.ones((1, 10, 10), np.uint8))
        dataset.gcps = points, rasterio.CRS.from_epsg(4326)
        dataset.update_tags(AREA_OR_POINT=pixels_are)
    with rasterio.open(path) as dataset:  # where GDAL says that they are
        points = dataset.gcps[0]
    with open_raster(path) as reader, create_raster(tmp_path / "b.tif", reader.info, cog=cog) as writer:
        writer.write(reader.read(slice(0, 10), slice(0, 10)), slice(0, 10), slice(0, 10))
    with rasterio.open(tmp_path / "b.tif") as new:
        assert [(p.row, p.col, p.x, p.y) for p in new.gcps[0]] == [(p.row, p.col, p.x, p.y) for p in points]
        assert new.gcps[1] == rasterio.CRS.from_epsg(4326)
        assert new.tags()["AREA_OR_POINT"] == pixels_are


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_rpcs_are_kept(tmp_path):
    path = tmp_path / "rpc.tif"
    ones = [1.0] + [0.0] * 19
    rpcs = RPC(
        *(100.0, 50.0, 50.0, 1.0, ones, ones, 5.0, 5.0, 10.0, 1.0),
        *(ones, ones, 5.0, 5.0),
    )
    with rasterio.open(path, "w", "GTiff", 10, 10, 1, dtype="uint8") as dataset:
        dataset.write(np.ones((1, 10, 10), np.uint8))
        dataset.rpcs = rpcs
    with rasterio.open(path) as old, rasterio.open(copied(path, tmp_path / "c.tif")) as new:
        assert old.rpcs is not None and new.rpcs.to_gdal() == old.rpcs.to_gdal()


def test_an_internal_mask_hides_pixels_and_is_kept(tmp_path):
    path = write_tif(tmp_path / "a.tif", np.full((3, 40, 50), 9, np.uint8))
    mask = np.full((40, 50), 255, np.uint8)
    mask[5:20, 10:30] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    with open_raster(path) as reader:
        valid = reader.read_valid(slice(0, 40), slice(0, 50))
    np.testing.assert_array_equal(valid, np.broadcast_to(mask > 0, (3, 40, 50)))
    with rasterio.open(copied(path, tmp_path / "b.tif")) as new:
        np.testing.assert_array_equal(new.dataset_mask(), mask)


@pytest.mark.parametrize("size", [(200, 333), (333, 96), (40, 50)])
def test_a_scene_too_wide_for_the_cache_is_skimmed_block_by_block_to_the_same_pixels(tmp_path, monkeypatch, size):
    dn = np.random.default_rng(0).integers(1, 60000, (4, *size), np.uint16)
    dn[3] = np.where(dn[3] > 20000, 65535, 0)
    path = tmp_path / "a.tif"
    profile = {"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "DEFLATE", "alpha": "YES"}
    height, width = size
    with rasterio.open(path, "w", "GTiff", width, height, 4, dtype="uint16", photometric="RGB", **profile) as new:
        new.write(dn)
    with open_raster(path) as reader:
        assert reader.info.alpha == 4
        at_once = reader.read_reduced([3, 1], max_px=70)
    monkeypatch.setattr("declouder.raster.reduced.CACHE_BYTES", 0)
    monkeypatch.setattr("declouder.raster.reduced._skim_at_once", None)
    with open_raster(path) as reader:
        by_blocks = reader.read_reduced([3, 1], max_px=70)
    for one, other in zip(at_once, by_blocks, strict=True):
        np.testing.assert_array_equal(one, other)
    vrt = vrt_of(path, tmp_path / "a.vrt", bands=4, size=size)
    monkeypatch.setattr("declouder.raster.reduced._LEAST_VRT_BLOCK_PX", 48)
    with open_raster(vrt) as reader:
        np.testing.assert_array_equal(reader.read_reduced([3, 1], max_px=70)[0], at_once[0])


def vrt_of(path: Path, vrt: Path, *, bands: int, size: tuple[int, int], mask: str = "") -> Path:
    """Write a VRT of all of a uint16 image, `mask` in each band."""
    height, width = size
    band = (
        '<VRTRasterBand dataType="UInt16" band="{0}">{1}<SimpleSource><SourceFilename relativeToVRT="1">{2}'
        "</SourceFilename><SourceBand>{0}</SourceBand></SimpleSource></VRTRasterBand>"
    )
    inner = "".join(band.format(number, mask, path.name) for number in range(1, bands + 1))
    vrt.write_text(f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">{inner}</VRTDataset>')
    return vrt


def test_masks_of_single_bands_are_refused(tmp_path):
    path = write_tif(tmp_path / "a.tif", np.ones((3, 9, 9), np.uint16))
    mask = '<MaskBand><VRTRasterBand dataType="Byte"><SimpleSource><SourceFilename relativeToVRT="1">a.tif'
    mask += "</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></MaskBand>"
    vrt = vrt_of(path, tmp_path / "a.vrt", bands=3, size=(9, 9), mask=mask)
    refused = pytest.raises(
        RasterError, match=r"a\.vrt has a mask for each band; give all bands one: gdal_translate"
    )
    with refused, open_raster(vrt):
        pass


def test_a_link_to_a_vrt_is_that_vrt(tmp_path):
    (tmp_path / "data").mkdir()
    path = write_tif(tmp_path / "data" / "a.tif", np.full((3, 9, 9), 7, np.uint16))
    (tmp_path / "link.vrt").symlink_to(vrt_of(path, tmp_path / "data" / "a.vrt", bands=3, size=(9, 9)))
    with open_raster(tmp_path / "link.vrt") as reader:
        assert (reader.read(slice(0, 9), slice(0, 9)) == 7).all()


def test_valid_samples_are_neither_nodata_nor_nan_nor_infinite_nor_transparent(tmp_path):
    dn = np.ones((2, 4, 4), np.float32)
    dn[0, 0, 0], dn[1, 1, 1], dn[0, 2, 2] = -9999, np.nan, np.inf
    expected = np.ones((2, 4, 4), bool)
    expected[0, 0, 0] = expected[1, 1, 1] = expected[0, 2, 2] = False
    with open_raster(write_tif(tmp_path / "a.tif", dn, nodata=-9999)) as reader:
        np.testing.assert_array_equal(reader.read_valid(slice(0, 4), slice(0, 4)), expected)
        np.testing.assert_array_equal(reader.read_reduced([1, 2])[1], expected)

    rgba = np.full((4, 5, 4), 200, np.uint8)
    rgba[2, 3, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    with open_raster(tmp_path / "a.png") as reader:
        valid = reader.read_valid(slice(0, 4), slice(0, 5), [1, 2, 3])
    assert (~valid).sum() == 3 and not valid[:, 2, 3].any()


def test_strips_of_a_wide_scene_are_read_once_for_all_parts_of_their_rows(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(reduced_module, "CACHE_BYTES", 2000)
    dn = rng.integers(0, 255, (3, 64, 700), dtype=np.uint8)
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16}
    for name, layout, kept in (("strips", {"blockysize": 1}, True), ("tiles", tiles, False)):
        with open_raster(write_tif(tmp_path / f"{name}.tif", dn, **layout)) as reader:
            reader.keep_rows(slice(10, 40))
            times = []
            read = reader.dataset.read

            class Counted:
                def __init__(self, dataset: object) -> None:
                    self._dataset = dataset

                def __getattr__(self, name: str) -> object:
                    return getattr(self._dataset, name)

                def read(self, *arguments: object, **options: object) -> np.ndarray:
                    times.append(1)  # noqa: B023
                    return read(*arguments, **options)  # noqa: B023

            reader.dataset = Counted(reader.dataset)
            for cols in (slice(0, 100), slice(650, 700)):
                part = reader.read(slice(12, 40), cols, [3, 1])
                np.testing.assert_array_equal(part, dn[[2, 0], 12:40, cols])
                whole = reader.read(slice(10, 30), cols)
                np.testing.assert_array_equal(whole, dn[:, 10:30, cols])
                whole[:], part[:] = 0, 0  # a caller may write into what it has got
            assert bool(times) == (not kept)
            np.testing.assert_array_equal(reader.read(slice(9, 12), slice(0, 9)), dn[:, 9:12, :9])
            np.testing.assert_array_equal(reader.read(slice(39, 41), slice(0, 9)), dn[:, 39:41, :9])
            reader.keep_rows(slice(10, 40), [3, 2])
            times.clear()
            np.testing.assert_array_equal(reader.read(slice(12, 40), slice(5, 90), [3]), dn[[2], 12:40, 5:90])
            assert bool(times) == (not kept)
            np.testing.assert_array_equal(reader.read(slice(12, 40), slice(5, 90)), dn[:, 12:40, 5:90])
            assert times, "all bands are not kept"


@pytest.mark.parametrize(
    ("width", "layout", "kept"),
    [
        (10_000, {"tiled": True, "blockxsize": 512, "blockysize": 512}, 2 * 512 * 10_000 * 8),
        (40_000, {"tiled": True, "blockxsize": 512, "blockysize": 512}, MOST_CACHE_BYTES),
        (90_000, {"tiled": True, "blockxsize": 512, "blockysize": 512}, CACHE_BYTES),  # where it would be in vain
        (10_000, {"blockysize": 1}, CACHE_BYTES),
        (20_000, {"tiled": True, "blockxsize": 256, "blockysize": 256}, CACHE_BYTES),
    ],
)
@pytest.mark.parametrize("is_mosaic", [False, True])
def test_two_rows_of_blocks_are_kept_while_an_image_is_open(is_mosaic, width, layout, kept, tmp_path):
    path = tmp_path / "a.tif"
    shape = {"height": 3000, "width": width, "count": 4, "dtype": "uint16"}
    rasterio.open(path, "w", driver="GTiff", SPARSE_OK=True, **shape, **layout).close()
    if is_mosaic:
        rasterio.shutil.copy(path, tmp_path / "a.vrt", driver="VRT")
        path = tmp_path / "a.vrt"
    with gdal_settings():
        with open_raster(path), gdal_settings():  # as for the output, which is written meanwhile
            assert int(get_gdal_config("GDAL_CACHEMAX")) == kept
        assert int(get_gdal_config("GDAL_CACHEMAX")) == CACHE_BYTES


def test_a_world_file_that_would_place_an_output_is_told(tmp_path, rng, darker, caplog):
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.wld").write_text("30\n0\n0\n-30\n1\n2\n")
    remove_from_scene(tmp_path / "a.png", tmp_path / "c.tif", darker)
    assert "will place" not in caplog.text
    remove_from_scene(tmp_path / "a.png", tmp_path / "b.tif", darker)
    assert f"{tmp_path / 'b.wld'} is there, and programs will place {tmp_path / 'b.tif'} by it" in caplog.text


def test_an_animation_is_told_from_a_damaged_image(tmp_path, rng):
    first, second = (Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(2))
    first.save(tmp_path / "a.webp", save_all=True, append_images=[second], lossless=True)
    with (
        pytest.raises(RasterError, match=r"a\.webp is an animation; give a WebP of one image"),
        open_raster(tmp_path / "a.webp"),
    ):
        pass


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_png_of_every_band_count_comes_back_lossless(bands, tmp_path, rng):
    pixels = rng.integers(0, 256, (33, 44, bands), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(-1) if bands == 1 else pixels).save(tmp_path / "a.png")
    output = copied(tmp_path / "a.png", tmp_path / "b.png")
    np.testing.assert_array_equal(np.asarray(Image.open(output)).reshape(pixels.shape), pixels)
    assert Image.open(output).mode == Image.open(tmp_path / "a.png").mode


@pytest.mark.parametrize("bands", [3, 4])
def test_webp_is_written_losslessly(bands, tmp_path, rng):
    pixels = rng.integers(0, 256, (33, 44, bands), dtype=np.uint8)
    pixels[:9, :, 3:] = 0  # colours stay under full transparency too
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True, exact=True)
    output = copied(tmp_path / "a.webp", tmp_path / "b.webp")
    assert output.read_bytes()[:4] == b"RIFF"
    np.testing.assert_array_equal(np.asarray(Image.open(output)), pixels)


def test_jpeg_becomes_png_in_a_folder_and_others_keep_their_names():
    names = {"a.jpg": "a.png", "a.JPEG": "a.png"} | {name: name for name in ("a.png", "a.webp", "a.tif", "A.TIF")}
    assert {name: output_name(Path(name)) for name in names} == names


@pytest.mark.parametrize("suffix", [".jgw", ".jpg.aux.xml"])
def test_a_jpeg_that_says_where_it_lies_becomes_a_geotiff_in_a_folder(suffix, tmp_path):
    source = tmp_path / "a.jpg"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(source)
    assert output_name(source) == "a.png"
    text = "<PAMDataset><GeoTransform>500000, 10, 0, 4000000, 0, -10</GeoTransform></PAMDataset>"
    (tmp_path / f"a{suffix}").write_text("10\n0\n0\n-10\n500005\n3999995\n" if suffix == ".jgw" else text)
    assert output_name(source) == "a.tif"
    with rasterio.open(copied(source, tmp_path / "b.tif")) as dataset:
        assert dataset.transform == Affine(10, 0, 500000, 0, -10, 4000000)


def test_nothing_but_the_output_is_left_in_the_folder(rich_tif, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    copied(rich_tif, folder / "copy.tif")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    copied(tmp_path / "a.png", folder / "a.png")
    assert names_in(folder) == ["a.png", "copy.tif"]
    assert not list(tmp_path.glob("*.aux.xml"))


@pytest.mark.parametrize("name", ["x" * 234 + ".tif", "x" * 251 + ".tif", "云" * 80 + ".png"])
def test_names_as_long_as_a_file_system_takes_can_be_written(name, tmp_path):
    source = write_tif(tmp_path / "a.tif", np.ones((3, 9, 9), np.uint8), crs=None, transform=None)
    (tmp_path / "out").mkdir()
    copied(source, tmp_path / "out" / name)
    assert names_in(tmp_path / "out") == [name]


@pytest.mark.parametrize("cog", [False, True])
def test_a_crs_that_a_geotiff_cannot_hold_is_told(cog, tmp_path, caplog):
    rotated = CRS.from_string("+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +R=6371229")
    for crs, told in ((CRS.from_epsg(32633), False), (rotated, True)):
        source = write_tif(tmp_path / "a.tif", np.ones((1, 9, 9), np.uint8), crs=None)
        (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset><SRS>{escape(crs.to_wkt())}</SRS></PAMDataset>")
        with open_raster(source) as reader:
            assert reader.info.crs == crs
            with create_raster(tmp_path / "b.tif", reader.info, overwrite=True, cog=cog):
                pass
        assert ("b.tif cannot hold the CRS" in caplog.text) == told


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_an_output_that_is_a_link_stays_one_and_its_target_is_written(suffix, tmp_path):
    source = write_tif(tmp_path / "a.tif", np.ones((3, 9, 9), np.uint8), crs=None, transform=None)
    target, link = tmp_path / "disk" / f"real{suffix}", tmp_path / f"b{suffix}"
    target.parent.mkdir()
    link.symlink_to(target)
    for overwrite in (False, True):  # the first time it points nowhere
        (tmp_path / "disk" / f".real{suffix}.123.part").touch()
        remove_unfinished_rasters(link)
        copied(source, link, overwrite=overwrite)
        assert link.is_symlink() and (read_tif(target) == 1).all()
        assert names_in(target.parent) == [target.name] and names_in(tmp_path) == ["a.tif", link.name, "disk"]
    with pytest.raises(OutputError, match=rf"b\{suffix} exists already"):
        copied(source, link)
    link.unlink()
    link.symlink_to(tmp_path / "none" / "real.tif")
    with pytest.raises(OutputError, match="none does not exist"):
        copied(source, link, overwrite=True)
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(OutputError, match=rf"b\{suffix} is a link that leads round to itself"):
        copied(source, link, overwrite=True)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_on_the_way_leaves_nothing_behind_and_an_old_output_alone(error, rich_tif, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old.tif").write_bytes(b"old")
    for name in ("new.tif", "new.png", "old.tif"):
        source = rich_tif
        if name.endswith("png"):
            source = tmp_path / "a.png"
            Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(source)
        with (
            pytest.raises(error),
            open_raster(source) as reader,
            create_raster(folder / name, reader.info, overwrite=True) as writer,
        ):
            writer.write(reader.read(slice(0, 5), slice(0, 5)), slice(0, 5), slice(0, 5))
            raise error
    assert names_in(folder) == ["old.tif"]
    assert (folder / "old.tif").read_bytes() == b"old"


def test_a_full_disk_is_an_error_and_leaves_nothing_behind(tmp_path, rng):
    resource = pytest.importorskip("resource")
    source = write_tif(tmp_path / "a.tif", rng.integers(0, 60000, (3, 400, 400), dtype=np.uint16))
    folder = tmp_path / "out"
    folder.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutputError, match="disk full"):
            copied(source, folder / "b.tif", tile=128)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names_in(folder) == []


def test_overwriting_removes_the_side_files_of_the_old_image(rich_tif, tmp_path):
    output = copied(rich_tif, tmp_path / "b.tif")
    side = tmp_path / "b.tif.aux.xml"
    side.write_text("<PAMDataset/>")
    copied(rich_tif, output, overwrite=True)
    assert not side.exists()


def _truncated(path: Path, share: float = 0.6) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def _bad_source(kind: str, folder: Path) -> Path:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, 200, 300), dtype=np.uint8)
    path = folder / "bad.tif"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is no image\n" * 100)
    elif kind == "vrt":
        path.write_text('<VRTDataset rasterXSize="1" rasterYSize="1"></VRTDataset>')
    elif kind == "header":
        path.write_bytes(b"II*\0" + b"\0" * 20)
    elif kind.startswith("truncated tif"):
        options = {
            "truncated tif tiled": {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
        }
        _truncated(write_tif(path, noise, **options.get(kind, {})), 0.8)
    elif kind == "truncated png":
        path = folder / "bad.png"
        Image.fromarray(noise.transpose(1, 2, 0)).save(path)
        _truncated(path)
    elif kind == "truncated jpg":
        path = folder / "bad.jpg"
        Image.fromarray(noise.transpose(1, 2, 0)).save(path)
        _truncated(path)
    elif kind == "truncated webp":
        path = folder / "bad.webp"
        Image.fromarray(noise.transpose(1, 2, 0)).save(path)
        _truncated(path)
    elif kind == "complex":
        write_tif(path, noise.astype(np.complex64))
    elif kind == "palette":
        write_tif(path, noise[:1])
        with rasterio.open(path, "r+") as dataset:
            dataset.write_colormap(1, {k: (k, k, k, 255) for k in range(256)})
            dataset.colorinterp = [ColorInterp.palette]
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "does not exist"),
        ("folder", "is a folder"),
        ("pipe", "not a regular file"),
        ("empty", "is empty"),
        ("text", "not an image"),
        ("vrt", "not an image"),
        ("header", "damaged or truncated"),
        ("truncated tif", "truncated"),
        ("truncated tif tiled", "truncated"),
        ("truncated png", "truncated"),
        ("truncated jpg", "truncated"),
        ("truncated webp", "truncated"),
        ("complex", "complex"),
        ("palette", "palette"),
    ],
)
def test_a_bad_source_is_refused_in_one_line_with_its_mend(kind, words, tmp_path, capfd):
    path = _bad_source(kind, tmp_path)
    capfd.readouterr()
    with pytest.raises(RasterError, match=words) as caught, open_raster(path):
        pass
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    assert ";" in message, "says the mend"
    assert capfd.readouterr() == ("", ""), "GDAL's own noise stays away"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("missing/b.tif", "mkdir -p"),
        ("a.tif", "is the input"),
        ("sub/../a.tif", "is the input"),
        ("symlink.tif", "is the input"),
        ("hardlink.tif", "is the input"),
        ("sub", "is a folder"),
        ("sub.tif", "is a folder"),
        ("exists.tif", "--overwrite"),
        ("a.tif/b.tif", "not a folder"),
        ("b.jpg", "JPEG would lose detail"),
        ("b.xyz", "no suffix"),
        ("pipe.tif", "not a regular file"),
    ],
)
def test_a_bad_place_for_the_output_is_refused(output, words, tmp_path):
    source = write_tif(tmp_path / "a.tif", np.ones((1, 4, 4), np.uint8))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub.tif").mkdir()
    (tmp_path / "exists.tif").touch()
    (tmp_path / "symlink.tif").symlink_to(source)
    (tmp_path / "hardlink.tif").hardlink_to(source)
    os.mkfifo(tmp_path / "pipe.tif")
    with pytest.raises(OutputError, match=words):
        check_output(tmp_path / output, sources=[source], overwrite=words != "--overwrite")


@pytest.mark.parametrize("name", ["b.png", "b.webp"])
def test_a_picture_of_a_georeferenced_scene_is_written_with_a_warning(name, tmp_path, caplog):
    source = write_tif(tmp_path / "a.tif", np.ones((3, 4, 4), np.uint8))
    copied(source, tmp_path / name)
    assert "write a .tif" in caplog.text


@pytest.mark.parametrize(("name", "dtype", "bands"), [("b.png", "float32", 3), ("b.webp", "uint8", 1)])
def test_a_format_that_cannot_hold_the_image_is_refused(name, dtype, bands, tmp_path):
    source = write_tif(tmp_path / "a.tif", np.ones((bands, 4, 4), dtype))
    with pytest.raises(OutputError, match=r"write .*b\.tif instead"):
        copied(source, tmp_path / name)


@pytest.mark.parametrize("name", ["b.png", "b.webp"])
@pytest.mark.parametrize(
    ("bands", "words"),
    [
        (("red", "green", "blue", "nir"), "a further one as transparency"),
        (("blue", "green", "red"), "the bands blue, green, red as grey or as red, green, blue"),
        (("Blue", "Green", "Red"), "the bands blue, green, red as grey or as red, green, blue"),
    ],
)
def test_a_picture_that_would_show_bands_as_others_is_refused(bands, words, name, tmp_path):
    source = write_tif(tmp_path / "a.tif", np.ones((len(bands), 4, 4), np.uint8), photometric="MINISBLACK")
    with rasterio.open(source, "r+") as dataset:
        dataset.descriptions = bands
    with pytest.raises(OutputError, match=words):
        copied(source, tmp_path / name)
    with rasterio.open(source, "r+") as dataset:
        dataset.descriptions = ("one", "two", "three", "")[: len(bands)]
        dataset.colorinterp = [ColorInterp.gray, *[ColorInterp.undefined] * 2, ColorInterp.alpha][: len(bands)]
    assert copied(source, tmp_path / name).exists()


@pytest.mark.parametrize("colors", [("alpha",), ("alpha", "gray"), ("alpha", "undefined", "undefined")])
def test_transparency_that_does_not_come_last_is_no_picture(colors, tmp_path):
    with open_raster(write_tif(tmp_path / "a.tif", np.ones((len(colors), 4, 4), np.uint8))) as reader:
        info = replace(reader.info, colors=colors)
    with pytest.raises(OutputError, match="would show the bands alpha"):
        check_fits(tmp_path / "b.png", info)


def test_a_single_band_of_any_name_is_a_grey_picture(tmp_path):
    source = write_tif(tmp_path / "a.tif", np.ones((1, 4, 4), np.uint8))
    with rasterio.open(source, "r+") as dataset:
        dataset.descriptions = ("red",)
    assert Image.open(copied(source, tmp_path / "b.png")).mode == "L"


@pytest.mark.parametrize("name", ["b.png", "b.webp"])
def test_a_picture_that_cannot_hold_the_mask_is_refused_and_leaves_nothing(name, tmp_path):
    source = write_tif(tmp_path / "a.tif", np.ones((3, 4, 4), np.uint8))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(source, "r+") as dataset:
        dataset.write_mask(np.eye(4, dtype=np.uint8) * 255)
    with pytest.raises(OutputError, match="cannot hold the mask of"):
        copied(source, tmp_path / name)
    assert names_in(tmp_path) == ["a.tif"]


def test_the_tags_of_a_png_are_kept(tmp_path):
    source = write_tif(tmp_path / "a.tif", np.ones((3, 4, 4), np.uint8))
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(DECLOUDER_SEED="7")
    assert Image.open(copied(source, tmp_path / "b.png")).text["DECLOUDER_SEED"] == "7"


@pytest.mark.parametrize("value", [0, -9999])
def test_the_nodata_of_any_band_counts_and_is_kept(value, tmp_path, rng):
    dn = rng.integers(1, 3000, (3, 4, 5), dtype=np.int16)
    dn[1, 2, 3] = value
    source = vrt_with_nodata(tmp_path, dn, (None, value, value))
    with open_raster(source) as reader:
        valid = reader.read_valid(slice(0, 4), slice(0, 5))
        assert reader.info.nodata == value and (~valid).sum() == 1 and not valid[1, 2, 3]
        assert reader.read_reduced([1, 2, 3])[1].sum() == valid.sum()
    with rasterio.open(copied(source, tmp_path / "b.tif")) as dataset:
        assert dataset.nodata == value


@pytest.mark.parametrize(
    ("dtypes", "nodata", "words"),
    [
        (("int16", "int16", "int16"), (0, 1, 1), "bands whose nodata are 0.0 and 1.0"),
        (("int16", "uint8", "int16"), (None, None, None), "bands of int16 and uint8.*-ot int16"),
        (("int16", "uint16", "int16"), (None, None, None), "bands of int16 and uint16.*-ot int32"),
        (("int32", "uint8", "float32"), (None, None, None), "bands of float32 and int32 and uint8.*-ot float64"),
        (("int16", "cfloat32", "int16"), (None, None, None), "bands of complex64 and int16.*-ot float64"),
    ],
)
def test_bands_that_no_geotiff_can_hold_together_are_refused(dtypes, nodata, words, tmp_path):
    source = vrt_with_nodata(tmp_path, np.ones((3, 4, 5), np.int16), nodata, dtypes)
    with pytest.raises(RasterError, match=words), open_raster(source):
        pass


def vrt_with_nodata(folder: Path, dn: np.ndarray, nodata: Sequence[int | None], dtypes: Sequence[str] = ()) -> Path:
    """Write (C, H, W) of int16 and a VRT of it whose bands have these nodata and dtypes."""
    write_tif(folder / "tile.tif", dn)
    kinds = {"int16": "Int16", "uint16": "UInt16", "int32": "Int32", "uint8": "Byte"}
    kinds |= {"float32": "Float32", "cfloat32": "CFloat32"}
    bands = "".join(
        f'<VRTRasterBand dataType="{kinds[dtype]}" band="{number}">'
        + ("" if value is None else f"<NoDataValue>{value}</NoDataValue>")
        + '<SimpleSource><SourceFilename relativeToVRT="1">tile.tif</SourceFilename>'
        f"<SourceBand>{number}</SourceBand></SimpleSource></VRTRasterBand>"
        for number, (value, dtype) in enumerate(zip(nodata, dtypes or ("int16",) * len(dn), strict=True), 1)
    )
    path = folder / "tile.vrt"
    path.write_text(f'<VRTDataset rasterXSize="{dn.shape[2]}" rasterYSize="{dn.shape[1]}">{bands}</VRTDataset>')
    return path


@pytest.mark.parametrize(("source", "output"), [("a.png", "b.png"), ("a.jpg", "b.png"), ("a.png", "b.tif")])
def test_the_colour_profile_of_a_picture_is_kept(source, output, tmp_path, rng, darker):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8))
    picture.save(tmp_path / source, icc_profile=profile)
    remove_from_scene(tmp_path / source, tmp_path / output, darker)
    with Image.open(tmp_path / output) as result:
        assert result.info["icc_profile"] == profile


def test_what_a_camera_says_in_a_jpeg_goes_into_the_tags_of_a_geotiff(tmp_path, rng, darker):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    remove_from_scene(tmp_path / "a.jpg", tmp_path / "b.tif", darker)
    with rasterio.open(tmp_path / "b.tif") as dataset:
        assert dataset.tags()["EXIF_Make"] == "Maker"


def test_statistics_of_the_old_pixels_are_dropped_wherever_they_stand(tmp_path, darker, rng):
    source = write_tif(tmp_path / "a.tif", rng.integers(1, 255, (3, 40, 50), dtype=np.uint8))
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(1, STATISTICS_MEAN="5", STATISTICS_VALID_PERCENT="100", wavelength="665")
        dataset.update_tags(STATISTICS_MAXIMUM="9")
    (tmp_path / "a.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="2"><Metadata><MDI key="STATISTICS_MINIMUM">1</MDI></Metadata>'
        "</PAMRasterBand></PAMDataset>"
    )
    for name in ("b.tif", "c.png"):
        remove_from_scene(source, tmp_path / name, darker)
        with rasterio.open(tmp_path / name) as dataset:
            found = [dataset.tags(band) for band in range(4)]
        assert not any("STATISTICS" in key for tags in found for key in tags)
    assert not (tmp_path / "b.tif.aux.xml").exists()


@pytest.mark.parametrize("kind", ["mask", "cog", "png", "webp"])
def test_what_a_full_disk_cut_off_is_never_published(kind, tmp_path, rng, monkeypatch):
    """GDAL writes what it holds back as it closes a file, and says nothing where that fails."""
    source = write_tif(tmp_path / "a.tif", rng.integers(0, 256, (3, 300, 400), dtype=np.uint8))
    if kind == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(source, "r+") as dataset:
            dataset.write_mask(rng.integers(0, 2, (300, 400), dtype=np.uint8) * 255)
    output = tmp_path / ("b." + {"mask": "tif", "cog": "tif"}.get(kind, kind))
    real = writing_module.is_whole

    def cut(path: Path) -> bool:
        final = path.suffix != ".part" or kind == "mask"
        if final:
            # Not more than the last block, which for a mask is the mask's.
            os.truncate(path, path.stat().st_size - 100)
        return real(path)

    monkeypatch.setattr(writing_module, "is_whole", cut)
    with (
        pytest.raises(OutputError, match="could not be written in full"),
        open_raster(source) as reader,
        create_raster(output, reader.info, cog=kind == "cog") as writer,
    ):
        everything = slice(0, 300), slice(0, 400)
        writer.write(reader.read(*everything), *everything)
        if kind == "mask":
            writer.write_mask(reader.read_mask(*everything), *everything)
    assert names_in(tmp_path) == ["a.tif"]


def test_a_scene_whose_mask_is_cut_off_is_refused(tmp_path, rng):
    source = write_tif(tmp_path / "a.tif", rng.integers(0, 256, (3, 300, 400), dtype=np.uint8))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(source, "r+") as dataset:
        dataset.write_mask(rng.integers(0, 2, (300, 400), dtype=np.uint8) * 255)
    with open_raster(source) as reader:
        assert reader.info.has_mask
    os.truncate(source, source.stat().st_size - 100)
    with pytest.raises(RasterError, match="truncated: its mask"), open_raster(source):
        pass


def test_points_without_a_crs_are_kept(tmp_path):
    points = [GroundControlPoint(row, col, 5e5 + col, 4e6 - row) for row, col in ((0, 0), (0, 40), (30, 0))]
    path = tmp_path / "a.tif"
    with rasterio.open(path, "w", "GTiff", 40, 30, 3, dtype="uint8") as dataset:
        dataset.write(np.ones((3, 30, 40), np.uint8))
        dataset.gcps = points, rasterio.CRS()
    copied(path, tmp_path / "b.tif")
    with rasterio.open(tmp_path / "b.tif") as new:
        assert [(p.row, p.col, p.x, p.y) for p in new.gcps[0]] == [(p.row, p.col, p.x, p.y) for p in points]
        assert not new.gcps[1]


@pytest.mark.parametrize("what", ["descriptions", "units", "rpcs"])
def test_what_is_no_utf8_or_half_there_is_left_out_and_told_once(what, tmp_path, caplog):
    path = write_tif(tmp_path / "a.tif", np.ones((3, 30, 40), np.uint8))
    if what == "rpcs":
        half = '<Metadata domain="RPC"><MDI key="LINE_OFF">150</MDI></Metadata>'
        (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset>{half}</PAMDataset>")
    else:
        with rasterio.open(path, "r+") as dataset:
            setattr(dataset, what, ("Muxller", "b", "c"))
        path.write_bytes(path.read_bytes().replace(b"Muxller", b"M\xfc ller"))
    for _ in range(2):
        with open_raster(path) as reader:
            assert not any(getattr(reader.info, what) or ())
    assert caplog.text.count(f"{what} of {path} cannot be read") == 1


def test_a_crs_that_is_no_utf8_is_told(tmp_path):
    local = CRS.from_proj4("+proj=tmerc +lat_0=1 +lon_0=9 +ellps=bessel").to_wkt()
    crs = CRS.from_wkt(local.replace("unknown", "Muxller"))
    path = write_tif(tmp_path / "a.tif", np.ones((3, 30, 40), np.uint8), crs=crs)
    path.write_bytes(path.read_bytes().replace(b"Muxller", b"M\xfc ller"))
    with (
        pytest.raises(RasterError, match=r"the CRS of .*a\.tif is no text in UTF-8 .*; write it anew"),
        open_raster(path),
    ):
        pass


@pytest.mark.parametrize("place", ["nan, 30, 0, 4e6, 0, -30", "5e5, inf, 0, 4e6, 0, -30"])
def test_a_place_that_is_nowhere_is_told(place, tmp_path):
    path = tmp_path / "a.tif"
    with rasterio.open(path, "w", "GTiff", 40, 30, 3, dtype="uint8") as dataset:
        dataset.write(np.ones((3, 30, 40), np.uint8))
    (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset><GeoTransform>{place}</GeoTransform></PAMDataset>")
    with pytest.raises(RasterError, match=r"which is nowhere; mend its place"), open_raster(path):
        pass


def test_of_a_file_that_is_replaced_the_permissions_stay(rich_tif, tmp_path):
    output = copied(rich_tif, tmp_path / "b.tif")
    for mode in (0o600, 0o664):
        output.chmod(mode)
        copied(rich_tif, output, overwrite=True)
        assert output.stat().st_mode & 0o777 == mode


def test_a_name_as_long_as_names_can_be_has_nothing_beside_it(rich_tif, tmp_path):
    longest = tmp_path / f"{'a' * 251}.tif"
    longest.write_bytes(rich_tif.read_bytes())
    with open_raster(longest) as reader:
        assert len(files_identity(reader.info.files)) == 1


def test_a_raster_is_on_the_disk_before_it_has_its_name_and_then_its_folder(rich_tif, tmp_path, monkeypatch):
    output, synced = tmp_path / "copy.tif", []

    def fsync(file: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(file).st_mode), output.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    copied(rich_tif, output)
    assert synced == [(False, False), (True, True)]


def test_a_file_that_appears_at_the_outputs_name_while_it_is_written_is_kept(rich_tif, tmp_path):
    output = tmp_path / "b.tif"
    with (
        pytest.raises(OutputError, match=r"b\.tif exists already"),
        open_raster(rich_tif) as reader,
        create_raster(output, reader.info),
    ):
        output.write_bytes(b"precious")
    assert output.read_bytes() == b"precious" and names_in(tmp_path) == ["b.tif", "rich.tif"]


@pytest.mark.parametrize("suffix", [".aux.xml", ".ovr", ".msk"])
def test_no_side_file_of_the_old_image_stays_beside_its_name_nor_beside_a_link_to_it(suffix, rich_tif, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "b.tif").symlink_to(tmp_path / "disk" / "real.tif")
    sides = [tmp_path / f"b.tif{suffix}", tmp_path / "disk" / f"real.tif{suffix}"]
    for side in sides:
        side.write_text("<PAMDataset/>")
    copied(rich_tif, tmp_path / "b.tif", overwrite=True)
    assert not any(side.exists() for side in sides)


def test_the_overviews_of_a_cloud_optimised_geotiff_are_means(identity, tmp_path):
    dn = np.zeros((3, 600, 700), np.uint8)
    dn[:, ::2, ::2] = dn[:, 1::2, 1::2] = 100
    source = write_tif(tmp_path / "a.tif", dn)
    remove_from_scene(source, tmp_path / "b.tif", identity, SceneOptions(cog=True))
    with rasterio.open(tmp_path / "b.tif", OVERVIEW_LEVEL=0) as dataset:
        assert dataset.shape == (300, 350)
        np.testing.assert_array_equal(dataset.read(), 50)


@pytest.mark.parametrize(("height", "width"), [(2, 16384), (16384, 2)])
def test_an_image_too_wide_or_high_for_a_webp_is_refused(height, width, tmp_path):
    source = write_tif(tmp_path / "a.tif", np.ones((3, height, width), np.uint8), crs=None, transform=None)
    with pytest.raises(OutputError, match=rf"{width} x {height} px; write .*b\.tif instead"):
        copied(source, tmp_path / "b.webp")
    assert copied(source, tmp_path / "b.png").exists()


def test_a_png_of_16_bits_comes_back_lossless(tmp_path, rng):
    dn = rng.integers(0, 65536, (3, 33, 44), dtype=np.uint16)
    source = write_tif(tmp_path / "a.tif", dn, crs=None, transform=None)
    np.testing.assert_array_equal(read_tif(copied(source, tmp_path / "b.png")), dn)


@pytest.mark.parametrize("layout", ["strips", "tiles"])
def test_a_scene_whose_last_band_is_cut_off_is_refused(layout, tmp_path, rng):
    profile = {"tiled": True, "blockxsize": 64, "blockysize": 32} if layout == "tiles" else {}
    dn = rng.integers(0, 256, (3, 200, 300), dtype=np.uint8)
    source = write_tif(tmp_path / "a.tif", dn, interleave="band", **profile)
    os.truncate(source, source.stat().st_size - 20_000)
    with pytest.raises(RasterError, match="is truncated: its pixels need"), open_raster(source):
        pass


def test_a_scene_reduced_is_that_of_the_bands_asked_for(tmp_path, rng):
    dn = rng.integers(0, 9000, (3, 20, 30), dtype=np.uint16)
    with open_raster(write_tif(tmp_path / "a.tif", dn)) as reader:
        for bands in ((1, 2), (3, 1), (1, 2)):
            np.testing.assert_array_equal(reader.read_reduced(bands)[0], dn[[band - 1 for band in bands]])


def test_stated_limits_of_the_old_pixels_are_dropped(tmp_path):
    source = write_tif(tmp_path / "a.tif", np.ones((3, 20, 30), np.uint8))
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(TIFFTAG_MINSAMPLEVALUE="1", TIFFTAG_MAXSAMPLEVALUE="1", TIFFTAG_ARTIST="me")
    with rasterio.open(copied(source, tmp_path / "b.tif")) as dataset:
        tags = dataset.tags()
    assert tags["TIFFTAG_ARTIST"] == "me" and not any("SAMPLEVALUE" in key for key in tags)


@pytest.mark.parametrize("cog", [False, True])
def test_the_metadata_of_an_operator_is_in_the_output_and_in_no_file_beside_it(cog, tmp_path, caplog):
    source = write_tif(tmp_path / "a.tif", np.ones((3, 40, 40), np.uint8))
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(ns="IMD", satId="WV02")
    out = tmp_path / "out"
    out.mkdir()
    with open_raster(source) as reader:
        for _ in range(2):
            with create_raster(out / "b.tif", reader.info, overwrite=True, cog=cog) as writer:
                writer.write(np.ones((3, 40, 40), np.uint8), slice(0, 40), slice(0, 40))
        assert names_in(out) == ["b.tif"] and "b.IMD" not in caplog.text
        with rasterio.open(out / "b.tif") as dataset:
            assert dataset.tags(ns="IMD") == {"satId": "WV02"}
        (out / "b.IMD").write_text('satId = "OLD";\nEND;\n')
        with create_raster(out / "b.tif", reader.info, overwrite=True, cog=cog):
            pass
    assert f"{out / 'b.IMD'} is there, and programs will add what it says to {out / 'b.tif'}" in caplog.text
    assert names_in(out) == ["b.IMD", "b.tif"]  # it may be another file's


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_that_no_scale_reaches_hold_no_data(dtype, tmp_path, darker):
    lowest = float(np.finfo("float32").min)
    dn = np.full((3, 40, 50), 0.5, dtype)
    dn[:, 3, 4], dn[0, 7, 8], dn[1, 9, 9] = lowest, -lowest, 2e37
    path = write_tif(tmp_path / "a.tif", dn)
    declared = "".join(
        f'<PAMRasterBand band="{k}"><NoDataValue>-1.7e308</NoDataValue></PAMRasterBand>' for k in (1, 2, 3)
    )
    Path(f"{path}.aux.xml").write_text(f"<PAMDataset>{declared}</PAMDataset>")  # more than float32 can hold
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        remove_from_scene(path, tmp_path / "b.tif", darker, SceneOptions(scale=Scaling(0, 1)))
    found, far = read_tif(tmp_path / "b.tif"), np.abs(dn) > 1
    np.testing.assert_array_equal(found[far], dn[far])
    np.testing.assert_allclose(found[~far], 0.25, atol=1e-6)


def test_what_a_killed_run_left_of_a_cloud_optimised_geotiff_is_removed(tmp_path):
    ends = ("", ".tif", ".tif.tmp", ".tif.ovr.tmp", ".tif.msk.ovr.tmp", ".IMD")
    for end in ends:
        (tmp_path / f".b.tif.123.part{end}").touch()
    (tmp_path / ".b.tif.123.IMD").touch()
    kept = {
        "123.part",
        ".b.tif.123.parts",
        ".b.tif.x.part.tif.tmp",
        ".c.tif.123.part.tif.tmp",
        ".b.tif.x.IMD",
        ".b.tif.IMD",
    }
    for name in kept:
        (tmp_path / name).touch()
    remove_unfinished_rasters(tmp_path / "b.tif")
    assert set(names_in(tmp_path)) == kept


def test_of_an_output_that_another_run_may_be_writing_what_lives_is_spared(tmp_path):
    dead, living = (tmp_path / f".b.tif.{number}.part" for number in (2**22 + 1, os.getpid()))
    for path in (dead, living):
        path.touch()
    remove_unfinished_rasters(tmp_path / "b.tif", spare_living=True)
    assert names_in(tmp_path) == [living.name]
    remove_unfinished_rasters(tmp_path / "b.tif")
    assert names_in(tmp_path) == []


def test_what_gdal_leaves_of_a_cloud_optimised_geotiff_that_fails_is_removed(tmp_path, monkeypatch):
    source = write_tif(tmp_path / "a.tif", np.ones((3, 40, 40), np.uint8))

    def fails(part, image, **_):
        for end in ("", ".tmp", ".ovr.tmp", ".msk.ovr.tmp"):
            image.with_name(image.name + end).touch()
        raise rasterio.errors.RasterioIOError("no space")

    monkeypatch.setattr(writing_module.rasterio.shutil, "copy", fails)
    with (
        open_raster(source) as reader,
        pytest.raises(OutputError, match="cannot be written"),
        create_raster(tmp_path / "b.tif", reader.info, cog=True),
    ):
        pass
    assert names_in(tmp_path) == ["a.tif"]


def test_what_a_scene_is_read_from_is_not_written_over(tmp_path):
    source = write_tif(tmp_path / "a.tif", np.ones((3, 40, 40), np.uint8))
    rasterio.shutil.copy(source, tmp_path / "scene.vrt", driver="VRT")
    with (
        open_raster(tmp_path / "scene.vrt") as reader,
        pytest.raises(OutputError, match=r"is the input .*a\.tif"),
        create_raster(source, reader.info, overwrite=True),
    ):
        pass
    assert (read_tif(source) == 1).all()


def test_a_source_that_is_named_as_a_side_file_is_refused_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=r"b\.tif\.ovr is named as a side file of b\.tif"):
        check_output(Path("b.tif"), sources=[tmp_path / "b.tif.ovr"], overwrite=False)


@pytest.mark.parametrize("ending", [".IMD", ".imd", ".RPB", ".rpb", "_RPC.TXT", "_rpc.txt"])
@pytest.mark.parametrize("cog", [False, True])
def test_a_file_of_metadata_that_would_join_the_output_is_told(ending, cog, tmp_path, caplog):
    (tmp_path / f"b{ending}").touch()
    source = write_tif(tmp_path / "a.tif", np.ones((3, 40, 40), np.uint8))
    with open_raster(source) as reader, create_raster(tmp_path / "b.tif", reader.info, cog=cog):
        pass
    assert f"b{ending} is there, and programs will add what it says" in caplog.text


@pytest.mark.parametrize("namespace", [None, "PROVIDER"])
@pytest.mark.parametrize("band", [0, 2])
def test_a_cloud_optimised_geotiff_keeps_the_tags_it_can_and_others_are_told(namespace, band, tmp_path, caplog):
    source = write_tif(tmp_path / "a.tif", np.ones((3, 40, 40), np.uint8), compress="lzw")
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(1, wavelength="400")
        dataset.update_tags(band, ns=namespace, satellite="one")
    with open_raster(source) as reader, create_raster(tmp_path / "b.tif", reader.info, cog=True):
        pass
    with rasterio.open(tmp_path / "b.tif") as dataset:
        assert dataset.tags(band, ns=namespace)["satellite"] == "one"
        assert dataset.compression.value == "LZW"
        assert ("wavelength" in dataset.tags(1)) == (namespace is None)
    assert ("cannot have the tags wavelength of bands" in caplog.text) == (namespace is not None)


def test_a_cloud_optimised_geotiff_without_tags_of_bands_loses_none(tmp_path, caplog):
    source = write_tif(tmp_path / "a.tif", np.ones((3, 40, 40), np.uint8))
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(ns="PROVIDER", satellite="one")
    with open_raster(source) as reader, create_raster(tmp_path / "b.tif", reader.info, cog=True):
        pass
    assert caplog.text == ""


def test_what_a_single_band_says_is_kept(tmp_path):
    source = write_tif(tmp_path / "a.tif", np.ones((2, 4, 4), np.uint8))
    with rasterio.open(source, "r+") as dataset:
        dataset.scales, dataset.offsets, dataset.units = [1, 0.5], [0, 3], ["", "K"]
    with rasterio.open(copied(source, tmp_path / "b.tif")) as dataset:
        assert (dataset.scales, dataset.offsets, dataset.units) == ((1, 0.5), (0, 3), (None, "K"))


def test_what_was_compressed_with_loss_comes_back_without_further_loss(tmp_path, rng):
    source = write_tif(tmp_path / "a.tif", rng.integers(0, 256, (3, 64, 64), dtype=np.uint8), compress="jpeg")
    output = copied(source, tmp_path / "b.tif")
    np.testing.assert_array_equal(read_tif(output), read_tif(source))


def test_a_geotiff_holds_more_bands_than_a_byte_counts_and_a_webp_no_nodata_of_0(tmp_path):
    with open_raster(write_tif(tmp_path / "a.tif", np.ones((3, 4, 4), np.uint8), nodata=0)) as reader:
        info = reader.info
    check_fits(tmp_path / "b.tif", replace(info, count=300))
    check_fits(tmp_path / "b.png", info)
    with pytest.raises(OutputError, match="cannot hold the nodata value"):
        check_fits(tmp_path / "b.webp", info)


def test_of_the_processs_filters_of_warnings_one_is_set_and_taken_away(tmp_path):
    entry, theirs = ("ignore", None, NotGeoreferencedWarning, None, 0), ("error", None, FutureWarning, None, 0)
    path = write_tif(tmp_path / "a.tif", np.ones((3, 9, 9), np.uint8), crs=None, transform=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotGeoreferencedWarning)
        before = [*warnings.filters]
        with open_raster(path):
            with open_raster(path):
                warnings.simplefilter("error", FutureWarning)
            assert entry in warnings.filters
        assert warnings.filters == [theirs, *before]
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # it is theirs now, and stays
        with open_raster(path):
            pass
        assert entry in warnings.filters


def test_overviews_are_not_asked_what_a_number_declared_later_has_mixed(tmp_path, rng):
    dn = rng.integers(1000, 3000, (4, 3000, 2600)).astype(np.float32)
    dn[:, :700] = -9999
    path = write_tif(tmp_path / "a.tif", dn, nodata=-1, tiled=True)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], rasterio.enums.Resampling.average)
    with open_raster(path) as reader:
        reader.declare_nodata(-9999)
        values, valid = reader.read_reduced((1, 2, 3))
    assert values[valid].min() >= 1000


def test_a_png_cannot_hold_nodata_beside_transparency(tmp_path):
    path = write_tif(tmp_path / "a.tif", np.full((4, 9, 9), 9, np.uint8), nodata=0, crs=None, transform=None)
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [rasterio.enums.ColorInterp[color] for color in ("red", "green", "blue", "alpha")]
    with pytest.raises(OutputError, match=r"cannot hold both nodata and transparency"):
        copied(path, tmp_path / "b.png")
