"""STAC items: their bands as one scene, the item of a result, and what an item cannot make us read."""

from __future__ import annotations

import copy
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from conftest import names_in, read_tif, write_tif
from declouder import cli
from declouder.errors import OutputError, RasterError
from declouder.raster import open_raster
from declouder.raster.gdal import DTYPES
from declouder.scene import SceneOptions, auto_scale, remove_from_scene

pystac = pytest.importorskip("pystac")

from declouder.stac import read_item, scene_of, write_derived  # noqa: E402

PLACE = {"type": "Polygon", "coordinates": [[[15, 36], [15, 35.9], [15.1, 35.9], [15.1, 36], [15, 36]]]}
MEANING = {"scale": 1e-4, "offset": -0.1, "nodata": 0}


def asset(href: str, **fields: Any) -> dict[str, Any]:
    return {"href": href, "roles": ["data"], **fields}


def item(assets: dict[str, Any], version: str = "1.0.0", **properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": version,
        "id": "S2B_33",
        "geometry": PLACE,
        "bbox": [15, 35.9, 15.1, 36],
        "properties": {"datetime": "2023-05-06T10:00:00Z", "platform": "sentinel-2b", **properties},
        "links": [{"rel": "self", "href": "https://example.org/S2B_33.json"}],
        "assets": assets,
    }


def named_so(of: str, version: str) -> dict[str, Any]:
    """Return the assets of an item that says what its bands are called and mean in one of the ways."""
    files = {"B04": "red", "B03": "green", "B02": "blue", "B08": "nir"}
    if of == "key":
        return {color: asset(f"./{name}.tif", **{"raster:bands": [MEANING]}) for name, color in files.items()}
    if version == "1.0.0":
        bands = {name: [{"name": name, "common_name": color}] for name, color in files.items()}
        return {n: asset(f"{n}.tif", **{"eo:bands": b, "raster:bands": [MEANING]}) for n, b in bands.items()}
    meaning = {"raster:scale": 1e-4, "raster:offset": -0.1, "nodata": 0}
    return {
        name: asset(f"{name}.tif", bands=[{"name": name, "eo:common_name": color, **meaning}])
        for name, color in files.items()
    }


def coloured_assets() -> dict[str, Any]:
    colors = {"B04": "red", "B03": "green", "B02": "blue"}
    return {key: asset(f"./{key}.tif", **{"eo:bands": [{"common_name": color}]}) for key, color in colors.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with four bands of reflectance 0.05 to 0.45 as Sentinel-2 writes it, each a little brighter."""
    found = tmp_path / "item"
    found.mkdir()
    dn = np.linspace(1500, 5500, 40 * 50).astype(np.uint16).reshape(1, 40, 50)
    for number, name in enumerate(("B04", "B03", "B02", "B08")):
        write_tif(found / f"{name}.tif", dn + np.uint16(number))
    return found


def write(folder: Path, fields: Any, name: str = "item.json") -> Path:
    path = folder / name
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return path


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_the_item_of_a_picture_says_its_colours_and_names_the_extensions_it_uses(
    suffix, folder, tmp_path, model_folder
):
    for name in ("B04", "B03", "B02"):
        write_tif(folder / f"{name}.tif", np.full((1, 40, 50), 90, np.uint8))
    fields = item(coloured_assets())
    output = tmp_path / f"clear{suffix}"
    words = ["remove", "--stac", write(folder, fields), "-o", output, "--model", model_folder, "--steps", 0, "-q"]
    with pytest.raises(SystemExit, match="0"):
        cli.main([str(word) for word in words])
    found = json.loads((tmp_path / "clear.json").read_text())
    bands = found["assets"]["clear"]["bands"]
    assert [band["eo:common_name"] for band in bands] == ["red", "green", "blue"]
    assert not any("raster/" in extension for extension in found["stac_extensions"])
    properties = found["properties"]
    assert properties["processing:lineage"].startswith("Pixels of the bands in DECLOUDER_BANDS are synthesised")
    assert properties["processing:expression"]["expression"]["DECLOUDER_STEPS"] == "0"
    # Of a run that was stopped before it wrote the item, the file's own word is all there is.
    (tmp_path / "clear.json").unlink()
    with pytest.raises(SystemExit, match="0"):
        cli.main([*(str(word) for word in words), "--skip-existing"])
    again = json.loads((tmp_path / "clear.json").read_text())["properties"]
    where = "all or those under a mask" if suffix == ".webp" else "of the bands in DECLOUDER_BANDS"
    assert where in again["processing:lineage"]


@pytest.mark.parametrize(("nodata", "word"), [(np.nan, "nan"), (-np.inf, "-inf"), (np.inf, "inf"), (-1.5, -1.5)])
def test_the_item_of_a_scene_is_json_whatever_its_nodata(nodata, word, folder, tmp_path, model_folder):
    for name in ("B04", "B03", "B02"):
        write_tif(folder / f"{name}.tif", np.full((1, 40, 50), 0.3, np.float32), nodata=nodata)
    assets = {
        name: {key: value for key, value in asset.items() if key not in MEANING}
        for name, asset in coloured_assets().items()
    }
    path, output = write(folder, item(assets)), tmp_path / "clear.tif"
    assert run("remove", "--stac", path, "-o", output, "--model", model_folder, "--steps", 0, "-q") == 0
    text = (tmp_path / "clear.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert [band["nodata"] for band in found["assets"]["clear"]["bands"]] == [word] * 3


def test_colours_of_different_nodata_are_named(folder):
    for name, nodata in (("B04", 0), ("B03", 65535)):
        with rasterio.open(folder / f"{name}.tif", "r+") as dataset:
            dataset.nodata = nodata
    path = write(folder, item(coloured_assets()))
    with pytest.raises(RasterError, match=r"nodata differs \(red 0.*, green 65535"):
        read_item(path)


def test_landsats_name_of_the_near_infrared_is_known(folder):
    assets = coloured_assets() | {"B08": asset("./B08.tif", **{"eo:bands": [{"common_name": "nir08"}]})}
    with (
        scene_of(read_item(write(folder, item(assets)))) as scene,
        open_raster(scene, allow_outside=True) as reader,
    ):
        assert reader.info.descriptions == ("red", "green", "blue", "nir")
        assert reader.info.colors == ("red", "green", "blue", "undefined")  # as which a result is shown


def test_bands_whose_pixels_differ_in_size_by_a_little_are_not_one_grid(folder):
    drifting = Affine(10.09, 0, 5e5, 0, -10.09, 4e6)  # a hundredth of a pixel a pixel: half a pixel at the far edge
    write_tif(folder / "B03.tif", np.ones((1, 40, 50), np.uint16), transform=drifting)
    path = write(folder, item(named_so("common name", "1.0.0")))
    with pytest.raises(RasterError, match="give bands of one grid"), scene_of(read_item(path)):
        pass


def test_a_band_with_a_mask_of_its_own_is_an_error_not_a_loss(folder):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(folder / "B04.tif", "r+") as dataset:
        dataset.write_mask(np.eye(40, 50, dtype=np.uint8) * 255)
    path = write(folder, item(named_so("common name", "1.0.0")))
    with pytest.raises(RasterError, match="has a mask or alpha of its own"), scene_of(read_item(path)):
        pass


@pytest.mark.parametrize(("of", "version"), [("common name", "1.0.0"), ("common name", "1.1.0"), ("key", "1.0.0")])
def test_the_bands_of_an_item_are_one_scene_with_their_names_and_meaning(of, version, folder):
    found = read_item(write(folder, item(named_so(of, version), version)))
    with scene_of(found) as scene, open_raster(scene, allow_outside=True) as reader:
        assert reader.info.descriptions == ("red", "green", "blue", "nir")
        assert reader.info.scales == pytest.approx([1e-4] * 4) and reader.info.nodata == 0
        scale = auto_scale(reader, (1, 2, 3))
        dn = reader.read(slice(0, 1), slice(0, 1))[:, 0, 0]
    assert (scale.low, scale.high) == pytest.approx((1000, 11000))
    assert dn.tolist() == [1500, 1501, 1502, 1503]
    assert not scene.exists()


def test_one_file_of_several_bands_and_a_picture_for_people(folder):
    dn = np.arange(3 * 40 * 50, dtype=np.uint16).reshape(3, 40, 50)
    write_tif(folder / "all.tif", dn)
    colors = [{"name": f"b{k}", "common_name": color} for k, color in enumerate(("blue", "green", "red"))]
    picture = {"href": "B02.tif", "roles": ["thumbnail"], "eo:bands": [{"common_name": "red"}]}
    found = read_item(write(folder, item({"red": picture, "all": asset("all.tif", **{"eo:bands": colors})})))
    assert {color: band.number for color, band in found.bands.items()} == {"red": 3, "green": 2, "blue": 1}
    with scene_of(found) as scene:
        np.testing.assert_array_equal(read_tif(scene), dn[::-1])


def test_an_offset_that_was_taken_off_already_is_not_taken_off_again(folder):
    path = write(folder, item(named_so("key", "1.0.0"), **{"earthsearch:boa_offset_applied": True}))
    assert read_item(path).bands["red"].offset == 0


def test_nir_of_another_resolution_is_left_out_and_red_of_another_is_an_error(folder):
    write_tif(folder / "B08.tif", np.ones((1, 20, 25), np.uint16))
    path = write(folder, item(named_so("key", "1.0.0")))
    assert list(read_item(path).bands) == ["red", "green", "blue"]
    write_tif(folder / "B03.tif", np.ones((1, 20, 25), np.uint16))
    with pytest.raises(RasterError, match="one grid"), scene_of(read_item(path)):
        pass


ALL = named_so("key", "1.0.0")
REFUSED = [
    ("{", "cannot be read"),
    ("[]", "no STAC item"),
    ('{"type": "FeatureCollection"}', "no STAC item"),
    ("[" * 100_000, "cannot be read"),
    ({"type": "Feature", "stac_version": "1.0.0", "properties": {}}, "no STAC item"),
    ({**item(ALL), "properties": None}, "no properties"),
    (item({"red": ALL["red"], "blue": ALL["blue"]}), "no band green"),
    (item({**ALL, "red": asset("https://example.org/B04.tif")}), "download it first"),
    (item({**ALL, "red": asset("s3://bucket/B04.tif")}), "download it first"),
    (item({**ALL, "red": asset("\ud800.tif")}), "has no href"),
    (item({**ALL, "red": asset("/vsicurl/http://example.org/B04.tif")}), "download it first"),
    (item({**ALL, "red": asset("../secret.tif")}), "--allow-outside"),
    (item({**ALL, "red": asset("file:///etc/passwd")}), "--allow-outside"),
    (item({**ALL, "red": asset("link.tif")}), "--allow-outside"),
    (item({**ALL, "red": asset("missing.tif")}), "no such file"),
    (item({**ALL, "red": asset("text.tif")}), "not an image"),
    (item({**ALL, "red": {**ALL["red"], "raster:bands": [{"scale": "much"}]}}), "wanted a number"),
    (item({**ALL, "red": {**ALL["red"], "raster:bands": [{"scale": 0}]}}), "scale 0"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_a_strange_or_hostile_item_is_an_error_in_one_line(fields, words, folder):
    write_tif(folder.parent / "secret.tif", np.ones((1, 40, 50), np.uint16))
    (folder / "link.tif").symlink_to("../secret.tif")
    (folder / "text.tif").write_text("no image")
    with pytest.raises(RasterError, match=words) as caught, scene_of(read_item(write(folder, fields))):
        pass
    assert "\n" not in str(caught.value)


def test_files_elsewhere_are_read_where_that_is_allowed(folder):
    (folder / "B04.tif").rename(folder.parent / "B04.tif")
    fields = item({**ALL, "red": asset((folder.parent / "B04.tif").as_uri())})
    found = read_item(write(folder, fields), allow_outside=True)
    assert found.bands["red"].path == folder.parent / "B04.tif"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def test_an_item_goes_to_a_file_that_is_named(folder, tmp_path, capfd):
    assert run("remove", "--stac", write(folder, item(ALL)), "-o", tmp_path) == 2
    assert "is a folder; give a file name in it, such as" in capfd.readouterr().err


def test_what_is_wrong_of_an_items_scene_is_said_of_the_item(folder, tmp_path, model_folder, capfd):
    path = write(folder, item(ALL))
    words = ("--model", model_folder, "--steps", 0, "-q", "--bands", "nope,green,blue")
    assert run("remove", "--stac", path, "-o", tmp_path / "clear.tif", *words) == 2
    assert f"error: {path} has no band" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_the_command_writes_the_scene_and_its_item(version, folder, model_folder, tmp_path):
    of_source = {"eo:cloud_cover": 80, "proj:epsg": 4326, "earthsearch:s3_path": "s3://x"}
    fields = item(named_so("common name", version), version, **of_source)
    path = write(folder, fields)
    output = tmp_path / "clear.tif"
    assert run("remove", "--stac", path, "-o", output, "--model", model_folder, "--steps", 0, "-q") == 0
    assert names_in(tmp_path) == ["clear.json", "clear.tif", "item"]
    with rasterio.open(output) as dataset:
        assert dataset.descriptions == ("red", "green", "blue", "nir")
        np.testing.assert_array_equal(dataset.read(4), read_tif(folder / "B08.tif")[0])
        assert dataset.offsets == pytest.approx([-0.1] * 4)
    made = pystac.Item.from_file(str(tmp_path / "clear.json"))
    assert made.id == "S2B_33-declouder" and made.datetime.year == 2023
    properties = made.properties
    assert properties["platform"] == "sentinel-2b" and not {"eo:cloud_cover", "earthsearch:s3_path"} & {*properties}
    assert properties["proj:code"] == "EPSG:32633" and properties["proj:shape"] == [40, 50]
    assert properties["proj:transform"] == [10, 0, 5e5, 0, -10, 4e6] and "proj:epsg" not in properties
    assert "declouder" in properties["processing:software"] and "synthesised" in properties["processing:lineage"]
    assert properties["processing:expression"]["expression"]["DECLOUDER_STEPS"] == "0"
    (origin,) = made.get_links("derived_from")
    assert origin.to_dict(transform_href=False)["href"] == "item/item.json"
    told = json.loads((tmp_path / "clear.json").read_text())["assets"]["clear"]
    assert told["href"] == "./clear.tif"
    assert [band["eo:common_name"] for band in told["bands"]] == ["red", "green", "blue", "nir"]
    assert told["bands"][0]["raster:offset"] == pytest.approx(-0.1)
    # A run that was stopped between the two is made whole.
    (tmp_path / "clear.json").unlink()
    assert run("remove", "--stac", path, "-o", output, "--model", "./none", "--skip-existing", "-q") == 0
    assert json.loads((tmp_path / "clear.json").read_text())["assets"]["clear"] == told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stac", "item/item.json", "item/B04.tif", "-o", "b.tif"], "--stac names the input"),
        (["--stac", "item/item.json", "-o", "item/B04.tif", "--overwrite"], "is the input"),
        (["--stac", "item/item.json", "-o", "item/item.tif", "--overwrite"], "is the input"),
        (
            ["--stac", "item/item.json", "-o", "b.tif", "--provenance", "item/B04.tif", "--overwrite"],
            "is the input",
        ),
        (["--stac", "item/item.json", "-o", "there.tif"], "there.json exists already"),
        (["--stac", "item/item.json", "-o", "nowhere/b.tif"], "mkdir -p nowhere"),
        (["--stac", "missing.json", "-o", "b.tif"], "does not exist"),
    ],
)
def test_a_mistake_with_an_item_is_one_line_with_exit_2_and_leaves_nothing(
    arguments, words, folder, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    write(folder, item(ALL))
    Path("there.json").write_text("{}")
    before = names_in(tmp_path), names_in(folder)
    assert run("remove", *arguments) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err
    assert (names_in(tmp_path), names_in(folder)) == before


def test_an_item_in_a_folder_with_a_colon_and_files_with_escaped_names_is_read(folder, tmp_path, model_folder):
    place = tmp_path / "2020-01-01T10:10:10" / "my scene"
    shutil.copytree(folder, place)
    fields = item(copy.deepcopy(ALL))
    options = ("-o", tmp_path / "b.tif", "--model", model_folder, "--steps", 0, "-q")
    assert run("remove", "--stac", write(place, fields), *options) == 0
    for asset in fields["assets"].values():
        asset["href"] = "./my%20scene/" + asset["href"].removeprefix("./")
    found = read_item(write(place.parent, fields))
    assert found.bands["red"].path == place / "B04.tif"


@pytest.mark.parametrize("href", ["http://[abc", "x" * 300 + ".tif"])
def test_a_href_that_is_none_is_named(href, folder):
    fields = item(copy.deepcopy(ALL))
    next(iter(fields["assets"].values()))["href"] = href
    with pytest.raises(RasterError, match="asset"):
        read_item(write(folder, fields))


def test_a_mask_beside_an_item_reads_nothing_outside_its_folder_unless_that_is_allowed(
    folder, tmp_path, model_folder, capfd
):
    mask = write_tif(tmp_path / "mask.tif", np.ones((1, 40, 50), np.uint8))
    (tmp_path / "sub").mkdir()
    rasterio.shutil.copy(mask, tmp_path / "sub" / "mask.vrt", driver="VRT")
    words = ["--stac", write(folder, item(ALL)), "-o", tmp_path / "b.tif", "--mask", tmp_path / "sub" / "mask.vrt"]
    assert run("remove", *words, "--model", model_folder, "--steps", 0, "-q") == 2
    assert "outside its own folder" in capfd.readouterr().err and not (tmp_path / "b.tif").exists()
    assert run("remove", *words, "--model", model_folder, "--steps", 0, "-q", "--allow-outside") == 0


def test_a_stopped_run_on_an_item_knows_its_input_again(folder):
    from declouder.raster import files_identity

    found = read_item(write(folder, item(ALL)))
    with scene_of(found) as scene:
        one = files_identity([scene])
    with scene_of(found) as scene:
        assert files_identity([scene]) == one


def test_the_item_of_a_result_is_not_written_over_another(folder, tmp_path):
    found = read_item(write(folder, item(ALL)))
    write_tif(tmp_path / "clear.tif", np.ones((3, 4, 4), np.uint8))
    write_derived(found, tmp_path / "clear.tif", max_pixels=10**9, tags={})
    with pytest.raises(OutputError, match="exists already"):
        write_derived(found, tmp_path / "clear.tif", max_pixels=10**9, tags={})


def test_without_pystac_the_error_names_the_command_that_installs_it(folder, tmp_path, monkeypatch, capfd):
    for name in [name for name in sys.modules if name.startswith("declouder.stac")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pystac", None)
    assert run("remove", "--stac", write(folder, item(ALL)), "-o", tmp_path / "b.tif") == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "pip install -c constraints.txt '.[stac]'" in err


def test_what_an_item_does_not_say_its_files_do(folder):
    for name in ("B04", "B03", "B02"):
        with rasterio.open(folder / f"{name}.tif", "r+") as dataset:
            dataset.scales, dataset.offsets, dataset.nodata = (5e-5,), (-0.05,), 7
    said = coloured_assets()
    for fields in said.values():
        fields["raster:bands"] = [MEANING]
    for assets, meaning, also, ends in (
        (coloured_assets(), (5e-5, -0.05, 7), None, (1000, 21000)),
        (said, (1e-4, -0.1, 7), 0, (1000, 11000)),
    ):
        found = read_item(write(folder, item(assets)))
        with scene_of(found) as scene, open_raster(scene, allow_outside=True) as reader:
            info, scale = reader.info, auto_scale(reader, (1, 2, 3))
            assert (info.scales[0], info.offsets[2], info.nodata) == pytest.approx(meaning)
            assert found.also_nodata == also
            assert (scale.low, scale.high) == pytest.approx(ends)


def test_bands_that_control_points_place_are_refused(folder):
    places = ((0, 0), (0, 9), (9, 0))
    points = [rasterio.control.GroundControlPoint(r, c, 15 + c / 100, 36 - r / 100) for r, c in places]
    for name in ("B04", "B03", "B02"):
        with rasterio.open(folder / f"{name}.tif", "w", "GTiff", 50, 40, 1, dtype="uint16") as dataset:
            dataset.write(np.ones((1, 40, 50), np.uint16))
            dataset.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
    path = write(folder, item(coloured_assets()))
    wanted = r"has its place by control points .* give it a grid first: gdalwarp"
    with pytest.raises(RasterError, match=wanted), scene_of(read_item(path)):
        pass


def test_an_item_that_a_stopped_run_has_not_written_is_made_alone(folder, tmp_path, model_folder, capsys):
    path, output = write(folder, item(coloured_assets())), tmp_path / "clear.tif"
    words = ["remove", "--stac", path, "-o", output, "--model", model_folder, "--steps", 0, "-q"]

    def run(*more: str) -> Any:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in (*words, *more)])
        return ended.value.code

    assert run() == 0
    made = (tmp_path / "clear.json").read_text()
    stamp = output.stat().st_mtime_ns
    (tmp_path / "clear.json").unlink()
    assert run() == 2
    assert "its item does not, as a run leaves it that was stopped" in " ".join(capsys.readouterr().err.split())
    assert run("--skip-existing") == 0
    assert json.loads((tmp_path / "clear.json").read_text())["assets"] == json.loads(made)["assets"]
    assert output.stat().st_mtime_ns == stamp


def test_fields_of_other_extensions_keep_their_extension_and_numbers_that_json_has_not_are_null(
    folder, tmp_path, model_folder
):
    view, sci, unused = (
        f"https://stac-extensions.github.io/{name}/v1.0.0/schema.json" for name in ("view", "scientific", "sat")
    )
    gone = "https://stac-extensions.github.io/processing/v1.0.0/schema.json"
    fields = item(
        ALL, **{"view:off_nadir": 3.5, "sci:doi": "10.1/x", "view:azimuth": math.nan, "processing:level": "L1"}
    )
    path = write(folder, {**fields, "stac_extensions": [view, sci, unused, gone]})
    words = ("-o", tmp_path / "clear.tif", "--model", model_folder, "--steps", 0, "-q")
    assert run("remove", "--stac", path, *words) == 0
    found = json.loads((tmp_path / "clear.json").read_text(), parse_constant=pytest.fail)
    assert {view, sci} <= set(found["stac_extensions"]) and not {unused, gone} & set(found["stac_extensions"])
    assert found["properties"]["view:azimuth"] is None
    assert pystac.Item.from_file(str(tmp_path / "clear.json")).ext.view.off_nadir == 3.5


def test_no_item_is_written_for_an_image_of_others(folder, tmp_path, model_folder, capfd):
    write_tif(tmp_path / "clear.tif", np.ones((3, 40, 50), np.uint16))
    words = ("-o", tmp_path / "clear.tif", "--model", model_folder, "--steps", 0, "-q", "--skip-existing")
    assert run("remove", "--stac", write(folder, item(ALL)), *words) == 2
    assert "clear.tif was not made by declouder" in capfd.readouterr().err
    assert not (tmp_path / "clear.json").exists()


def test_an_item_that_cannot_be_replaced_is_told_before_the_work(folder, tmp_path, model_folder, capfd):
    write_tif(tmp_path / "clear.tif", np.ones((3, 40, 50), np.uint16))
    before = (tmp_path / "clear.tif").read_bytes()
    (tmp_path / "clear.json").mkdir()
    words = ("-o", tmp_path / "clear.tif", "--model", model_folder, "--steps", 0, "-q", "--overwrite")
    assert run("remove", "--stac", write(folder, item(ALL)), *words) == 2
    assert (tmp_path / "clear.tif").read_bytes() == before


def test_nir_of_another_nodata_is_left_out(folder):
    for name, nodata in (("B04", 0), ("B03", 0), ("B02", 0), ("B08", 65535)):
        with rasterio.open(folder / f"{name}.tif", "r+") as dataset:
            dataset.nodata = nodata
    assets = coloured_assets() | {"B08": asset("./B08.tif", **{"eo:bands": [{"common_name": "nir"}]})}
    assert list(read_item(write(folder, item(assets))).bands) == ["red", "green", "blue"]


def test_files_of_single_bands_are_taken_before_one_of_several_that_is_named_first(folder):
    write_tif(folder / "all.tif", np.ones((3, 40, 50), np.uint16))
    together = [{"common_name": color} for color in ("red", "green", "blue")]
    assets = {"all": asset("all.tif", **{"eo:bands": together}), **coloured_assets()}
    found = read_item(write(folder, item(assets)))
    assert [band.path.name for band in found.bands.values()] == ["B04.tif", "B03.tif", "B02.tif"]


def test_a_file_with_two_bands_of_one_colour_is_not_guessed_at(folder):
    write_tif(folder / "all.tif", np.ones((4, 40, 50), np.uint16))
    colors = [{"common_name": color} for color in ("red", "red", "green", "blue")]
    with pytest.raises(RasterError, match="names no band red"):
        read_item(write(folder, item({"all": asset("all.tif", **{"eo:bands": colors})})))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bands_of_every_type_that_a_scene_may_have_are_one_scene(dtype, folder):
    dn = np.linspace(0, 100, 40 * 50).reshape(1, 40, 50).astype(dtype)
    for number, name in enumerate(("B04", "B03", "B02")):
        write_tif(folder / f"{name}.tif", dn + np.array(number, dtype))
    with (
        scene_of(read_item(write(folder, item(coloured_assets())))) as scene,
        open_raster(scene, allow_outside=True) as reader,
    ):
        assert reader.info.dtype == dtype
        np.testing.assert_array_equal(reader.read(slice(0, 40), slice(0, 50))[2], dn[0] + np.array(2, dtype))


def test_bands_of_a_type_that_no_scene_may_have_are_refused(folder):
    for name in ("B04", "B03", "B02"):
        write_tif(folder / f"{name}.tif", np.ones((1, 40, 50), np.int64))
    with (
        pytest.raises(RasterError, match=r"B04\.tif is of dtype int64; give bands of uint8, int8, "),
        scene_of(read_item(write(folder, item(coloured_assets())))),
    ):
        pass


def test_no_mask_beside_an_asset_makes_gdal_ask_a_server(asked, folder):
    hostile, requests = asked
    (folder / "B04.tif.msk").write_text(hostile)
    with pytest.raises(RasterError, match="is not an image that can be read, by its first bytes"):
        read_item(write(folder, item(coloured_assets())))
    assert requests == []


KEYS = {"red": "B04", "green": "B03", "blue": "B02"}


def test_an_assets_words_go_before_its_key_and_its_key_before_other_assets(folder):
    by_key = {key.title(): asset(f"{name}.tif") for key, name in KEYS.items()}
    assert list(read_item(write(folder, item(by_key))).bands) == list(KEYS)
    several = {**coloured_assets(), "red": asset("B08.tif", **{"eo:bands": [{"common_name": "nir"}] * 2})}
    assert read_item(write(folder, item(several))).bands["red"].path.name == "B04.tif"
    named = {key: asset(f"{name}.tif", **{"eo:bands": [{"common_name": key}]}) for key, name in KEYS.items()}
    other = {"other": asset("B08.tif", **{"eo:bands": [{"common_name": "red"}]})}
    assert read_item(write(folder, item(other | named))).bands["red"].path.name == "B04.tif"


@pytest.mark.parametrize(("applied", "offset"), [(False, -0.1), (True, 0)])
def test_an_offset_was_taken_off_only_where_the_item_says_so(applied, offset, folder):
    assets = coloured_assets()
    for each in assets.values():
        each["raster:bands"] = [{"scale": 1e-4, "offset": -0.1}]
    said = item(assets, **{"earthsearch:boa_offset_applied": applied})
    assert read_item(write(folder, said)).bands["red"].offset == offset


def test_a_name_is_taken_as_it_is_where_such_a_file_is_there(folder):
    shutil.copy(folder / "B04.tif", folder / "a%20b.tif")
    shutil.copy(folder / "B08.tif", folder / "a b.tif")
    assets = coloured_assets()
    assets["B04"]["href"] = "a%20b.tif"
    assert read_item(write(folder, item(assets))).bands["red"].path.name == "a%20b.tif"


@pytest.mark.parametrize("scale", [True, 10**400])
def test_a_scale_that_is_no_number_is_told(scale, folder):
    assets = coloured_assets()
    assets["B04"]["raster:bands"] = [{"scale": scale}]
    with pytest.raises(RasterError, match="scale"):
        read_item(write(folder, item(assets)))


@pytest.mark.parametrize("href", ["a\0b.tif", "/vsicurl/a.tif", "file://server/a.tif"])
def test_an_href_that_is_no_file_here_is_told(href, folder):
    assets = coloured_assets()
    assets["B04"]["href"] = href
    with pytest.raises(RasterError, match="asset B04"):
        read_item(write(folder, item(assets)))


def test_each_band_of_one_file_has_its_own_scale(folder):
    write_tif(folder / "all.tif", np.ones((3, 40, 50), np.uint16))
    bands = {
        "eo:bands": [{"common_name": key} for key in KEYS],
        "raster:bands": [{"scale": s} for s in (0.1, 0.2, 0.3)],
    }
    found = read_item(write(folder, item({"all": asset("all.tif", **bands)})))
    assert [band.scale for band in found.bands.values()] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("nodata", [-9999, "nan", 0.5, 65536])
def test_a_nodata_that_the_files_cannot_hold_is_told_and_theirs_counts(nodata, folder, caplog):
    for name in ("B04", "B03", "B02"):
        with rasterio.open(folder / f"{name}.tif", "r+") as dataset:
            dataset.nodata = 0
    assets = {key: {**fields, "nodata": nodata} for key, fields in coloured_assets().items()}
    found = read_item(write(folder, item(assets)))
    with scene_of(found) as scene, open_raster(scene, allow_outside=True) as reader:
        assert (reader.info.nodata, found.also_nodata) == (0, None)
    assert [record.message.split(" says ")[1] for record in caplog.records if record.levelname == "WARNING"] == [
        f"nodata {float(nodata):.17g}, which uint16 cannot be; what its files say counts"
    ]


def test_pixels_of_the_items_nodata_and_of_the_files_own_stay_as_they_are(
    folder, tmp_path, darker, model_folder, capfd
):
    dn = np.linspace(1500, 5500, 40 * 50).astype(np.uint16).reshape(1, 40, 50)
    dn[:, :8], dn[:, -6:] = 0, 65535
    for name in ("B04", "B03", "B02"):
        write_tif(folder / f"{name}.tif", dn, nodata=0)
    path = write(folder, item({key: {**one, "nodata": 65535} for key, one in coloured_assets().items()}))
    found = read_item(path)
    options = SceneOptions(allow_outside=True, nodata=found.also_nodata)
    with scene_of(found) as scene:
        remove_from_scene(scene, tmp_path / "clear.tif", darker, options)
    with rasterio.open(tmp_path / "clear.tif") as result:
        clear = result.read()
        assert result.nodata == 0
    assert (clear[:, :8] == 0).all() and (clear[:, -6:] == 65535).all()
    assert (clear[:, 8:-6] < dn[:, 8:-6]).mean() > 0.9
    words = ("--model", model_folder, "--steps", 0, "-o", tmp_path / "by_command.tif")
    assert run("remove", "--stac", path, *words) == 0
    err = " ".join(capfd.readouterr().err.split())
    assert "item.json says nodata 65535, its files 0; both count" in err
    assert "no data: 65535 as given, besides the 0 that the file declares" in err


@pytest.mark.parametrize("href", ["./missing.tif", "https://example.org/B08.tif", "text.tif", "../B08.tif"])
def test_nir_that_cannot_be_read_is_left_out_with_the_reason(href, folder, caplog):
    (folder / "text.tif").write_text("no image")
    assets = coloured_assets() | {"B08": asset(href, **{"eo:bands": [{"common_name": "nir"}]})}
    with caplog.at_level("INFO"):
        assert list(read_item(write(folder, item(assets))).bands) == ["red", "green", "blue"]
    assert "nir is left out: " in caplog.text


def test_an_asset_without_a_list_of_bands_says_itself_which_band_it_is(folder):
    colors = {"B04": "red", "B03": "green", "B02": "blue", "B08": "nir08"}
    bare = {key: asset(f"{key}.tif", **{"eo:common_name": color}) for key, color in colors.items()}
    inherited = {key: {**fields, "bands": [{"name": key}]} for key, fields in bare.items()}
    keys = {color: asset(f"{key}.tif") for key, color in colors.items()}
    for assets in (bare, inherited, keys):
        found = read_item(write(folder, item(assets, "1.1.0")))
        assert {color: band.path.stem for color, band in found.bands.items()} == {
            "red": "B04", "green": "B03", "blue": "B02", "nir": "B08"
        }  # fmt: skip


def test_the_key_nir_goes_before_the_key_nir08(folder):
    keys = {"nir08": "B02", "red": "B04", "green": "B03", "blue": "B02", "nir": "B08"}
    found = read_item(write(folder, item({key: asset(f"{name}.tif") for key, name in keys.items()})))
    assert found.bands["nir"].path.stem == "B08"


def test_a_fourth_band_that_the_item_calls_nir_is_no_transparency(folder, tmp_path, darker):
    dn = np.linspace(10, 240, 4 * 40 * 50).astype(np.uint8).reshape(4, 40, 50)
    dn[3, :5] = 0
    write_tif(folder / "naip.tif", dn, photometric="RGB")
    with rasterio.open(folder / "naip.tif", "r+") as dataset:
        dataset.colorinterp = [ColorInterp[name] for name in ("red", "green", "blue", "alpha")]
    named = [{"name": name, "common_name": name.lower()} for name in ("Red", "Green", "Blue", "NIR")]
    image = {"image": asset("naip.tif", **{"eo:bands": named})}
    with scene_of(read_item(write(folder, item(image)))) as scene:
        remove_from_scene(scene, tmp_path / "clear.tif", darker, SceneOptions(allow_outside=True))
    clear = read_tif(tmp_path / "clear.tif")
    np.testing.assert_array_equal(clear[3], dn[3])
    assert (clear[:3] < dn[:3]).all()  # also where the fourth band is 0
    image["image"]["eo:bands"][3] = {"name": "alpha"}
    with (
        pytest.raises(RasterError, match="has a mask or alpha of its own"),
        scene_of(read_item(write(folder, item(image)))),
    ):
        pass


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"roles": ["data", "visual"], "eo:bands": [{"common_name": c} for c in ("red", "green", "blue")]},
         "names no band red, green, blue (its assets: image; image is a picture for people); "),
        ({"eo:bands": [{"common_name": c} for c in ("red", "green", "green", "blue")]},
         "names no band green (its assets: image; image names green 2 times); "),
        ({}, "names no band red, green, blue (its assets: image); give an item that has red, green and blue, files"
         " of these, stacked: rio stack RED GREEN BLUE -o scene.tif, or an asset's file in place of the item"),
    ],
)  # fmt: skip
def test_why_no_band_was_found_is_told(fields, words, folder):
    with pytest.raises(RasterError) as caught:
        read_item(write(folder, item({"image": asset("B04.tif", **fields)})))
    assert words in str(caught.value)


@pytest.mark.parametrize("address", ["https://example.org/item.json", "s3://bucket/item.json"])
def test_an_items_address_is_told_from_a_file(address, tmp_path, capfd):
    assert run("remove", "--stac", address, "-o", tmp_path / "clear.tif") == 2
    assert "is an address, not a file; download the item" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("said_of_clouds", [False, True])
def test_the_derived_item_drops_what_its_source_says_of_clouds(said_of_clouds, folder, tmp_path, model_folder):
    url = "https://landsat.usgs.gov/stac/landsat-extension/v1.1.1/schema.json"
    clouds = {"landsat:cloud_cover_land": 40, "s2:thin_cirrus_percentage": 3.0, "tile:clouds_percent": 9}
    fields = item(ALL, gsd=0.5, **{"landsat:wrs_path": "190", "s2:water_percentage": 1.0})
    fields |= {"stac_extensions": [url], "bbox": None}
    if said_of_clouds:
        fields["properties"] |= clouds
    for color in ("red", "green", "blue"):
        fields["assets"][color] = {**ALL[color], "gsd": 10}
    words = ("--model", model_folder, "--steps", 0, "-q", "-o", tmp_path / "clear.tif", "--cog")
    assert run("remove", "--stac", write(folder, fields), *words) == 0
    derived = json.loads((tmp_path / "clear.json").read_text())
    assert not [name for name in derived["properties"] if "cloud" in name or "cirrus" in name]
    assert {"landsat:wrs_path", "s2:water_percentage"} <= derived["properties"].keys()
    # Nobody knows which fields an extension calls for, so it is named where all of its fields are kept.
    assert (url in derived["stac_extensions"]) == (not said_of_clouds)
    assert derived["assets"]["clear"]["gsd"] == 10
    assert derived["assets"]["clear"]["type"] == "image/tiff; application=geotiff; profile=cloud-optimized"
    assert derived["bbox"] == [15, 35.9, 15.1, 36]


def test_the_item_of_a_picture_says_where_it_lies_and_what_its_numbers_mean(folder, tmp_path, model_folder):
    assets = {color: fields for color, fields in ALL.items() if color != "nir"}
    words = ("--model", model_folder, "--steps", 0, "-q", "-o", tmp_path / "clear.png")
    assert run("remove", "--stac", write(folder, item(assets)), *words) == 0
    derived = json.loads((tmp_path / "clear.json").read_text())
    with rasterio.open(folder / "B04.tif") as source:
        assert derived["properties"]["proj:transform"] == list(source.transform)[:6]
        assert derived["properties"]["proj:code"] == f"EPSG:{source.crs.to_epsg()}"
    for band in derived["assets"]["clear"]["bands"]:
        assert (band["raster:scale"], band["raster:offset"]) == (1e-4, -0.1)


def provenance_of(told: Path) -> Any:
    return json.loads(told.read_text())["assets"].get("provenance")


@pytest.mark.parametrize("suffix", [".tif", ".png", ".webp"])
def test_the_item_names_the_provenance_of_its_run(suffix, folder, tmp_path, model_folder):
    for name in ("B04", "B03", "B02"):
        write_tif(folder / f"{name}.tif", np.full((1, 40, 50), 90, np.uint8))
    words = ("--stac", write(folder, item(coloured_assets())), "--model", model_folder, "--steps", 1, "-q")
    clear, told, made_up = tmp_path / f"clear{suffix}", tmp_path / "clear.json", tmp_path / "more" / "made_up.tif"
    made_up.parent.mkdir()
    assert run("remove", *words, "-o", clear, "--provenance", made_up, "--samples", 2) == 0
    asset = provenance_of(told)
    assert asset["href"] == "more/made_up.tif" and asset["roles"] == ["metadata"]
    assert [band["name"] for band in asset["bands"]] == ["changed", "w", "spread"]
    assert [band.get("unit") for band in asset["bands"]] == [None, None, "DN"]
    assert {band["data_type"] for band in asset["bands"]} == {"float32"}
    told.unlink()  # as a kill leaves it between the two
    assert run("remove", *words, "-o", clear, "--provenance", made_up, "--samples", 2, "--skip-existing") == 0
    assert provenance_of(told) == asset
    told.unlink()  # a raster of others is not named
    made_up.write_bytes((folder / "B04.tif").read_bytes())
    assert run("remove", *words, "-o", clear, "--provenance", made_up, "--skip-existing") == 0
    assert provenance_of(told) is None


def test_an_item_of_an_earlier_run_beside_a_newer_output_is_made_anew(folder, tmp_path, model_folder, capfd):
    words = ("--stac", write(folder, item(ALL)), "--model", model_folder, "--steps", 0, "-q")
    clear, told = tmp_path / "clear.tif", tmp_path / "clear.json"
    assert run("remove", *words, "-o", clear) == 0
    earlier = told.read_text()
    assert run("remove", *words, "-o", clear, "--overwrite", "--seed", 7) == 0
    now = json.loads(told.read_text())["properties"]["processing:expression"]
    assert run("remove", *words, "-o", clear, "--skip-existing") == 0
    assert json.loads(told.read_text())["properties"]["processing:expression"] == now
    told.write_text(earlier)  # as a kill leaves it between the two
    assert run("remove", *words, "-o", clear, "--skip-existing") == 0
    assert json.loads(told.read_text())["properties"]["processing:expression"] == now
    told.write_text("{}")  # of others
    assert run("remove", *words, "-o", clear, "--skip-existing") == 0
    assert told.read_text() == "{}"
