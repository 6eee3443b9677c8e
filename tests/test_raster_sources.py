"""What is let in as a source, and what a hostile or unusual file cannot do."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import Affine

from conftest import FakePipeline, names_in, read_tif, write_tif
from declouder.errors import OutputError, RasterError
from declouder.raster import create_raster, open_raster, output_name, vrt_of_bands
from declouder.raster.places import same_corners
from declouder.scene import SceneOptions, auto_scale, remove_from_scene


def vrt(name: str, *, relative: int = 1, band: str = "", more: str = "") -> str:
    return (
        f'<VRTDataset rasterXSize="40" rasterYSize="30">{more}'
        + "".join(
            f'<VRTRasterBand dataType="Byte" band="{k}" {band}><SimpleSource>'
            f'<SourceFilename relativeToVRT="{relative}">{name}</SourceFilename><SourceBand>{k}</SourceBand>'
            "</SimpleSource></VRTRasterBand>"
            for k in (1, 2, 3)
        )
        + "</VRTDataset>"
    )


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder with an image, and one outside of it."""
    inside = tmp_path / "inside"
    inside.mkdir()
    for path in (inside / "a.tif", tmp_path / "secret.tif"):
        write_tif(path, rng.integers(1, 255, (3, 30, 40), dtype=np.uint8))
    return inside


def whole(path: Path, **options: object) -> np.ndarray:
    with open_raster(path, **options) as reader:
        return reader.read(slice(0, reader.info.height), slice(0, reader.info.width))


def test_a_vrt_of_files_in_its_folder_is_read_and_restored(folder, identity):
    path = folder / "a.vrt"
    path.write_text(vrt("a.tif"))
    np.testing.assert_array_equal(whole(path), read_tif(folder / "a.tif"))
    remove_from_scene(path, folder / "b.tif", identity)
    np.testing.assert_array_equal(read_tif(folder / "b.tif"), read_tif(folder / "a.tif"))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_vrt_may_have_a_histogram(folder):
    counts = (
        "<Histograms><HistItem><HistMin>0</HistMin><HistMax>9</HistMax><BucketCount>1</BucketCount>"
        "<IncludeOutOfRange>0</IncludeOutOfRange><Approximate>1</Approximate><HistCounts>7</HistCounts></HistItem>"
        "</Histograms></VRTRasterBand>"
    )
    path = folder / "a.vrt"
    path.write_text(vrt("a.tif").replace("</VRTRasterBand>", counts))
    np.testing.assert_array_equal(whole(path), read_tif(folder / "a.tif"))


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("a.nc", "gdal_translate"),
        ("a.json", "--stac"),
        ("MTD_MSIL2A.xml", "the .SAFE folder"),
        ("a.bin", "GeoTIFF"),
    ],
)
def test_what_is_no_image_is_told_with_what_to_do(name, mend, tmp_path):
    (tmp_path / name).write_bytes(b"something else altogether")
    with pytest.raises(RasterError, match=rf"{name} is not an image that can be read, by .*; .*{mend}"):
        whole(tmp_path / name)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("how", ["relative", "absolute", "link", "capitals"])
def test_a_vrt_reads_nothing_outside_its_folder_unless_that_is_allowed(how, folder):
    (folder / "link.tif").symlink_to(folder.parent / "secret.tif")
    path = folder / "a.vrt"
    name = {"absolute": str(folder.parent / "secret.tif"), "link": "link.tif"}.get(how, "../secret.tif")
    text = vrt(name, relative=int(how != "absolute"))
    path.write_text(text.replace("relativeToVRT", "RELATIVETOVRT") if how == "capitals" else text)
    with pytest.raises(RasterError, match=r"outside its own folder.*--allow-outside"):
        whole(path)
    np.testing.assert_array_equal(whole(path, allow_outside=True), read_tif(folder.parent / "secret.tif"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (vrt("/vsicurl/http://example.org/a.tif", relative=0), "no plain file"),
        (vrt("GTIFF_DIR:1:a.tif"), "no plain file"),
        (vrt("missing.tif"), "does not exist"),
        (vrt("a.vrt"), "names a.vrt, a VRT in turn; give the files themselves, or make an image of it"),
        (vrt("a.tif", band='subClass="VRTDerivedRasterBand"'), "VRTDerivedRasterBand"),
        (vrt("a.tif", band='SUBCLASS="VRTRawRasterBand"'), "VRTRawRasterBand"),
        (vrt("a.tif", more="<PixelFunctionCode>import os</PixelFunctionCode>"), "PixelFunctionCode"),
        (vrt("a.tif", relative=2), 'holds relativeToVRT="2", more than'),
        (vrt("a.tif").replace("<SimpleSource>", '<SimpleSource SourceFilename="a.tif">'), "holds SourceFilename"),
        (vrt("a.tif").replace("<SourceFilename", '<SourceFilename relativetovrt="0"'), "holds relativetovrt"),
        ('<!DOCTYPE x [<!ENTITY a "aaaa">]>' + vrt("&a;"), "declares entities"),
        ("<VRTDataset", "is no XML"),
        ("<GDAL_WMS/>", "is no VRT"),
    ],
)
def test_a_vrt_of_other_things_is_refused(text, words, folder):
    path = folder / "a.vrt"
    path.write_text(text)
    with pytest.raises(RasterError, match=words) as caught:
        whole(path, allow_outside=True)
    assert ";" in str(caught.value)


def test_a_sentinel2_folder_is_read_by_its_bands_of_10_m(tmp_path, rng, darker):
    bands = {name: rng.integers(1, 4000, (1, 64, 64), dtype=np.uint16) for name in ("B02", "B03", "B04", "B08")}
    safe = tmp_path / "S2A_MSIL2A_20200101.SAFE"
    images = safe / "GRANULE" / "L2A_T33" / "IMG_DATA" / "R10m"
    images.mkdir(parents=True)
    for name, dn in bands.items():
        options = {"quality": 100, "reversible": True}
        source = write_tif(tmp_path / "band.tif", dn)
        rasterio.shutil.copy(source, images / f"T33_20200101_{name}_10m.jp2", driver="JP2OpenJPEG", **options)
    with open_raster(safe) as reader:
        assert reader.info.descriptions == ("red", "green", "blue", "nir")
        assert reader.info.crs == rasterio.CRS.from_epsg(32633)
    np.testing.assert_array_equal(whole(safe), np.concatenate([bands[k] for k in ("B04", "B03", "B02", "B08")]))
    report = remove_from_scene(safe, tmp_path / "b.tif", darker, SceneOptions(window_px=64))
    assert report.bands.numbers == (1, 2, 3)
    (images / "T33_20200101_B08_10m.jp2").unlink()
    with pytest.raises(RasterError, match="0 files of B08"):
        whole(safe)


def test_bands_of_different_grids_are_not_stacked(tmp_path):
    files = {
        name: write_tif(tmp_path / f"{name}.tif", np.ones((1, size, size), np.uint16))
        for name, size in (("red", 20), ("nir", 10))
    }
    with pytest.raises(RasterError, match="one grid"):
        vrt_of_bands(files)
    diagonal = rasterio.Affine(0, 10, 5e5, -10, 0, 4e6)  # has two corners of the other where it had them
    files["nir"] = write_tif(tmp_path / "nir.tif", np.ones((1, 20, 20), np.uint16), transform=diagonal)
    with pytest.raises(RasterError, match="one grid"):
        vrt_of_bands(files)


@pytest.mark.parametrize("pixel", [(10, 0), (1e-5, 0), (0, 10)])
def test_corners_may_differ_by_a_hundredth_of_a_pixel(pixel):
    a, b = pixel
    like = Affine(a, b, 500, b, -a, 900)

    def is_same(other: Affine) -> bool:
        return same_corners(other, like, width=40, height=30)

    assert is_same(like)
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        assert is_same(like * Affine.translation(0.009 * dx, 0.009 * dy))
        assert not is_same(like * Affine.translation(0.011 * dx, 0.011 * dy))
    # Alike at one corner, they may differ in the size of their pixels, or in which way is up.
    for other in (Affine.scale(1.001, 1), Affine.scale(1, 1.001), Affine.scale(1, -1)):
        assert not is_same(like * other)


def tiff_claiming(width: int, height: int, *, rows_per_strip: int, bands: int = 1) -> bytes:
    """Return a TIFF of a few hundred bytes whose header claims an image of that size."""
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 4, 1, 300), (277, 3, 1, bands), (278, 4, 1, rows_per_strip), (279, 4, 1, 50)]
    ifd = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (b"II*\0" + struct.pack("<I", 8) + ifd + b"\0" * 4).ljust(400, b"\0")


def png_claiming(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    "data",
    [
        tiff_claiming(10**6, 10**6, rows_per_strip=1),
        tiff_claiming(10**6, 10**6, rows_per_strip=10**6),
        tiff_claiming(90_000, 90_000, rows_per_strip=90_000),
        tiff_claiming(1, 2 * 10**9, rows_per_strip=1),
        tiff_claiming(100, 100, rows_per_strip=100, bands=60_000),
        png_claiming(10**6, 10**6),
        png_claiming(60_000, 60_000),
    ],
    ids=["million squared", "one strip", "under the limit", "tall", "many bands", "png", "png under the limit"],
)
def test_a_small_file_that_claims_a_huge_image_is_refused_before_memory_is_taken(data, tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "bomb.tif"
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RasterError), open_raster(path):
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_a_scene_over_the_limit_of_pixels_is_refused_and_says_how_to_allow_it(tmp_path):
    source = write_tif(tmp_path / "a.tif", np.ones((1, 30, 40), np.uint8))
    with pytest.raises(RasterError, match=r"40 x 30 px.*--max-pixels 1200"):
        whole(source, max_pixels=1199)
    assert whole(source, max_pixels=1200).shape == (1, 30, 40)


def test_a_cloud_optimised_geotiff_is_valid_has_overviews_and_keeps_everything(rich_tif, darker, tmp_path, rng):
    cogeo = pytest.importorskip("rio_cogeo")
    dn = rng.integers(1, 9000, (5, 1200, 1100), dtype=np.uint16)
    with rasterio.open(rich_tif) as old:
        profile = {"nodata": 0, "crs": old.crs, "transform": old.transform}
    source = write_tif(tmp_path / "large.tif", dn, **profile)
    with rasterio.open(source, "r+") as dataset:
        dataset.descriptions = ("swir", "blue", "green", "red", "nir")
        dataset.update_tags(acquired="2020-01-01")
        dataset.scales = [1e-4] * 5
    folder = tmp_path / "out"
    folder.mkdir()
    remove_from_scene(source, folder / "b.tif", darker, SceneOptions(window_px=600, scale=None, cog=True))
    assert names_in(folder) == ["b.tif"]
    valid, errors, warnings = cogeo.cog_validate(folder / "b.tif", strict=True)
    assert valid, (errors, warnings)
    with rasterio.open(source) as old, rasterio.open(folder / "b.tif") as new:
        assert new.overviews(1)
        for name in ("crs", "transform", "nodata", "dtypes", "shape", "descriptions", "scales"):
            assert getattr(new, name) == getattr(old, name), name
        assert new.tags()["acquired"] == "2020-01-01" and "DECLOUDER_NOTE" in new.tags()
        np.testing.assert_array_equal(new.read([1, 5]), old.read([1, 5]))


@pytest.mark.parametrize("name", ["a.tif.aux.xml", "a.IMD", "a.tfw"])
def test_a_pipe_that_would_be_read_with_an_image_is_refused_and_not_waited_for(name, tmp_path):
    path = write_tif(tmp_path / "a.tif", np.ones((3, 9, 9), np.uint8))
    os.mkfifo(tmp_path / f"b{name[1:]}")  # of another image
    (tmp_path / "a.wld").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a.tif.msk").symlink_to(tmp_path / "a.tif.msk")
    with open_raster(path) as reader:
        assert reader.info.count == 3
    os.mkfifo(tmp_path / name)
    with (
        pytest.raises(RasterError, match=rf"{name}, which may be read with a\.tif, is not a regular file"),
        open_raster(path),
    ):
        pass


def test_a_png_cannot_be_cloud_optimised(tmp_path):
    with (
        open_raster(write_tif(tmp_path / "a.tif", np.ones((3, 9, 9), np.uint8))) as reader,
        pytest.raises(OutputError, match=r"name it .*b\.tif"),
        create_raster(tmp_path / "b.png", reader.info, cog=True),
    ):
        pass


def test_bigtiff_is_used_when_needed_only(tmp_path):
    def magic(path: Path) -> bytes:
        return path.read_bytes()[:4]

    with open_raster(write_tif(tmp_path / "a.tif", np.ones((1, 20, 20), np.uint8))) as reader:
        with create_raster(tmp_path / "small.tif", reader.info):
            pass
        from dataclasses import replace

        huge = replace(reader.info, height=60_000, width=60_000)
        with create_raster(tmp_path / "huge.tif", huge):
            pass
    assert magic(tmp_path / "small.tif") == b"II*\0"
    assert (tmp_path / "huge.tif").open("rb").read(4) == b"II+\0"


@pytest.mark.parametrize("saturated_rows", [0, 9])
def test_scale_and_offset_tags_that_mean_reflectance_give_the_scale(saturated_rows, tmp_path, rng):
    dn = rng.integers(1100, 7000, (3, 60, 60)).astype(np.uint16)
    dn[:, :saturated_rows] = 65535  # Sentinel-2's word for it
    path = write_tif(tmp_path / "a.tif", dn)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = [1e-4] * 3, [-0.1] * 3
    with open_raster(path) as reader:
        scale = auto_scale(reader, (1, 2, 3))
    assert (scale.low, scale.high) == (pytest.approx(1000), pytest.approx(11000))


L2A = """<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">
<n1:General_Info><Product_Image_Characteristics><QUANTIFICATION_VALUES_LIST>
<BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE></QUANTIFICATION_VALUES_LIST>
OFFSETS</Product_Image_Characteristics></n1:General_Info></n1:Level-2A_User_Product>"""
OFFSETS = "".join(f'<BOA_ADD_OFFSET band_id="{band}">-1000</BOA_ADD_OFFSET>' for band in range(13))
L1C = (
    "<n1:Level-1C_User_Product xmlns:n1='x'><QUANTIFICATION_VALUE>10000</QUANTIFICATION_VALUE>"
    + OFFSETS.replace("BOA", "RADIO")
    + "</n1:Level-1C_User_Product>"
)


@pytest.fixture
def safe(tmp_path: Path) -> Path:
    """A Sentinel-2 folder of reflectance 0.05 to 0.45 with a collar of no data, as baseline 04.00 writes it."""
    dn = np.linspace(1500, 5500, 64 * 64).astype(np.uint16).reshape(1, 64, 64)
    dn[:, :, :5] = 0
    found = tmp_path / "S2B_MSIL2A_20230101.SAFE"
    images = found / "GRANULE" / "L2A_T33" / "IMG_DATA" / "R10m"
    images.mkdir(parents=True)
    source = write_tif(tmp_path / "band.tif", dn)
    for name in ("B02", "B03", "B04", "B08"):
        target = images / f"T33_20230101_{name}_10m.jp2"
        rasterio.shutil.copy(source, target, driver="JP2OpenJPEG", quality=100, reversible=True)
    return found


@pytest.mark.parametrize(
    ("name", "text", "low", "high"),
    [
        ("MTD_MSIL2A.xml", L2A.replace("OFFSETS", OFFSETS), 1000, 11000),
        ("MTD_MSIL1C.xml", L1C, 1000, 11000),
        ("MTD_MSIL2A.xml", L2A.replace("OFFSETS", ""), 0, 10000),
    ],
)
def test_sentinel2_numbers_mean_the_reflectance_that_the_metadata_say(name, text, low, high, safe):
    (safe / name).write_text(text)
    with open_raster(safe) as reader:
        found = auto_scale(reader, (1, 2, 3))
        assert reader.info.scales == pytest.approx([1e-4] * 4)
        assert reader.info.offsets == pytest.approx([-low / 10000] * 4)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_what_macos_leaves_beside_the_bands_of_a_sentinel2_folder_is_none_of_them(safe):
    (safe / "MTD_MSIL2A.xml").write_text(L2A.replace("OFFSETS", OFFSETS))
    images = next(safe.glob("GRANULE/*/IMG_DATA/R10m"))
    (images / "._T33_20230101_B04_10m.jp2").write_bytes(b"Mac OS X")
    with open_raster(safe) as reader:
        assert reader.info.count == 4


@pytest.mark.parametrize("band", ["B04", "B08"])
def test_a_band_of_a_sentinel2_folder_that_is_replaced_while_it_is_read_is_told(band, safe, tmp_path):
    (safe / "MTD_MSIL2A.xml").write_text(L2A.replace("OFFSETS", OFFSETS))
    path = next(safe.glob(f"GRANULE/*/IMG_DATA/R10m/*_{band}_10m.jp2"))

    def meanwhile(cloudy, latents):
        (tmp_path / "new.jp2").write_bytes(path.read_bytes())
        (tmp_path / "new.jp2").replace(path)
        return cloudy

    with pytest.raises(RasterError, match=rf"{band}_10m\.jp2 was changed while it was read"):
        remove_from_scene(safe, tmp_path / "b.tif", FakePipeline(meanwhile), SceneOptions(window_px=64))


def test_a_sentinel2_output_keeps_the_meaning_of_its_numbers_and_the_collar_of_no_data(safe, darker, tmp_path):
    (safe / "MTD_MSIL2A.xml").write_text(L2A.replace("OFFSETS", OFFSETS))
    before = whole(safe)
    remove_from_scene(safe, tmp_path / "b.tif", darker, SceneOptions(window_px=64))
    with rasterio.open(tmp_path / "b.tif") as dataset:
        assert dataset.nodata == 0
        assert dataset.offsets == pytest.approx([-0.1] * 4) and dataset.scales == pytest.approx([1e-4] * 4)
        after = dataset.read()
    assert (after[:, :, :5] == 0).all()
    # Half the reflectance, not half the number: (DN - 1000) / 2 + 1000.
    expected = (before[:3, :, 5:].astype(float) - 1000) / 2 + 1000
    np.testing.assert_allclose(after[:3, :, 5:], expected, atol=1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>', "declares entities"),
        (L2A.replace("<?xml", '<!DOCTYPE x SYSTEM "file:///etc/passwd"><?xml').encode(), "declares entities"),
        ('<!DOCTYPE x [<!ENTITY a "1">]><x>&a;</x>'.encode("utf-16"), "cannot be read as text"),
        (b"<x>", "is no XML"),
        (b"", "is no XML"),
        (b"<x/>", "0 elements BOA_QUANTIFICATION_VALUE"),
        (L2A.replace("10000", "ten").encode(), "is 'ten'"),
        (L2A.replace("10000", "nan").encode(), "is 'nan'"),
        (L2A.replace("10000", "0").encode(), "above 0"),
        (L2A.replace("OFFSETS", OFFSETS.replace('"3"', '"33"')).encode(), "no BOA_ADD_OFFSET of band_id 3"),
        (b"<x>" * 10**5, "is no XML"),
    ],
)
def test_hostile_or_broken_sentinel2_metadata_is_an_error_in_one_line(text, words, safe):
    (safe / "MTD_MSIL2A.xml").write_bytes(text)
    with pytest.raises(RasterError, match=words) as caught:
        whole(safe)
    assert "MTD_MSIL2A.xml" in str(caught.value) and "\n" not in str(caught.value)


def test_sentinel2_metadata_of_absurd_size_are_not_read(safe, monkeypatch):
    from declouder.raster import sentinel2

    monkeypatch.setattr(sentinel2, "_MOST_XML_BYTES", 100)
    (safe / "MTD_MSIL2A.xml").write_text(L2A)
    with pytest.raises(RasterError, match="is of over"):
        whole(safe)


def test_sentinel2_metadata_outside_the_product_are_not_read(safe, tmp_path):
    (tmp_path / "elsewhere.xml").write_text(L2A)
    (safe / "MTD_MSIL2A.xml").symlink_to(tmp_path / "elsewhere.xml")
    with pytest.raises(RasterError, match="outside its product"):
        whole(safe)


def test_a_band_that_is_damaged_is_an_error_of_the_user_and_no_bug(safe):
    (path,) = safe.glob("GRANULE/*/IMG_DATA/R10m/*_B03_10m.jp2")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(RasterError, match=r"B03_10m\.jp2 cannot be opened"):
        whole(safe)


def test_a_vrt_in_an_encoding_that_hides_its_declarations_is_refused(folder):
    path = folder / "a.vrt"
    path.write_bytes(('<!DOCTYPE x [<!ENTITY a "a.tif">]>' + vrt("&a;")).encode("utf-16"))
    with pytest.raises(RasterError, match="cannot be read as text"):
        whole(path)


@pytest.mark.parametrize("how", ["tag", "sidecar", "vrt", "named by a vrt"])
@pytest.mark.parametrize("key", ["OVERVIEW_FILE", "Overview_File"])
@pytest.mark.parametrize("where", ["secret.tif", "/vsicurl/http://127.0.0.1:9/x.tif"])
def test_overviews_that_a_file_says_are_elsewhere_are_not_followed(how, where, key, folder):
    elsewhere = where if where.startswith("/") else str(folder.parent / where)
    domain = f'<Metadata domain="OVERVIEWS"><MDI key="{key}">{elsewhere}</MDI></Metadata>'
    path = folder / "a.tif"
    if how == "sidecar":
        (folder / "a.tif.aux.xml").write_text(f"<PAMDataset>{domain}</PAMDataset>")
    elif how in ("tag", "named by a vrt"):
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(ns="OVERVIEWS", **{key: elsewhere})
    if "vrt" in how:
        path = folder / "a.vrt"
        path.write_text(vrt("a.tif", more=domain if how == "vrt" else ""))
    with pytest.raises(RasterError, match=r"says that its overviews are in .*, which is not followed"):
        whole(path)


@pytest.mark.parametrize("suffix", [".ovr", ".msk", ".OVR", ".Msk"])
def test_overviews_and_masks_beside_a_file_must_be_geotiffs(suffix, folder):
    beside = folder / f"a.tif{suffix}"
    beside.write_text(vrt("../secret.tif"))
    with pytest.raises(RasterError, match=r"is not an image that can be read, by its first bytes"):
        whole(folder / "a.tif")
    Image.new("L", (4, 4)).save(beside, "PNG")
    with pytest.raises(RasterError, match=rf"a\.tif\{suffix}, which belongs to a\.tif, is no GeoTIFF; remove it"):
        whole(folder / "a.tif")


@pytest.mark.parametrize("suffix", [".ovr", ".MSK"])
def test_they_are_looked_at_in_a_folder_that_may_not_be_listed(suffix, folder, monkeypatch):
    def unlistable(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", unlistable)
    np.testing.assert_array_equal(whole(folder / "a.tif"), read_tif(folder / "a.tif"))
    Image.new("L", (4, 4)).save(folder / f"a.tif{suffix}", "PNG")
    with pytest.raises(RasterError, match="is no GeoTIFF"):
        whole(folder / "a.tif")


@pytest.mark.parametrize("suffix", [".ovr", ".msk", ".ovr.ovr"])
def test_overviews_beside_a_file_say_nowhere_else_either(suffix, folder):
    write_tif(folder / "a.tif.ovr", np.ones((3, 15, 20), dtype=np.uint8))
    beside = write_tif(folder / f"a.tif{suffix}", np.ones((3, 15, 20), dtype=np.uint8))
    with rasterio.open(beside, "r+") as dataset:
        dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(folder.parent / "secret.tif"))
    with pytest.raises(RasterError, match=rf"a\.tif\{suffix} says that its overviews are in .*secret\.tif"):
        whole(folder / "a.tif")


def test_a_sentinel2_folder_may_have_any_name(safe):
    expected = whole(safe)
    odd = safe.rename(safe.with_name("S2 & others <new>.SAFE"))
    np.testing.assert_array_equal(whole(odd), expected)


def test_each_band_of_a_sentinel2_folder_has_its_own_offset(safe):
    offsets = "".join(f'<BOA_ADD_OFFSET band_id="{band}">{-1000 - band}</BOA_ADD_OFFSET>' for band in range(13))
    (safe / "MTD_MSIL2A.xml").write_text(L2A.replace("OFFSETS", offsets))
    with open_raster(safe) as reader:
        assert reader.info.descriptions == ("red", "green", "blue", "nir")
        assert reader.info.offsets == pytest.approx([-0.1003, -0.1002, -0.1001, -0.1007])


def test_no_mask_beside_a_band_or_a_picture_makes_gdal_ask_a_server(asked, safe, tmp_path):
    hostile, requests = asked
    band = next(safe.rglob("*_B04_10m.jp2"))
    band.with_name(f"{band.name}.msk").write_text(hostile)
    with (
        pytest.raises(RasterError, match="is not an image that can be read, by its first bytes"),
        open_raster(safe),
    ):
        pass
    Image.new("RGB", (40, 40)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg.msk").write_text(hostile)
    assert output_name(tmp_path / "a.jpg") == "a.png"
    assert requests == []
