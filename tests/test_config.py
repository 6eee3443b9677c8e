import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from declouder.config import dump_config, load_config, parse_config
from declouder.errors import ConfigError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("**/*.yaml"))
TOY = Path(__file__).parent.parent / "configs" / "toy.yaml"


def test_there_are_recipes():
    assert {"toy.yaml", "compact.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_survives_a_round_trip(path):
    config = load_config(path)
    assert parse_config(yaml.safe_load(dump_config(config)), source="dump") == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_opens_with_its_command(path):
    assert path.read_text().startswith("# declouder train configs/")


def test_set_wins_over_the_file_and_reads_numbers_as_people_write_them():
    config = load_config(CONFIGS[0].parent / "toy.yaml", ["stages.joint.lr=1e-5", "data.workers=2", "name=x"])
    assert config.stages["joint"].lr == 1e-5
    assert config.data.workers == 2
    assert config.name == "x"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.joint.lrr=1", "stages.joint.lrr is not a field; did you mean 'lr'?"),
        ("data.hold_outt=0.1", "data.hold_outt is not a field; did you mean 'hold_out'?"),
        ("nmae=1", "nmae is not a field; did you mean 'name'?"),
        ("stages.joint.augment.flip=none", "did you mean 'flips'?"),
        ("stages.jiont.lr=1", "stages.jiont"),
        ("stages.joint.lr=-1", "stages.joint.lr: Input should be greater than 0, found -1"),
        ("stages.joint.steps=many", "stages.joint.steps"),
        ("stages.joint.augment.zoom=[2, 0.5]", "zoom is [2, 0.5], not [least, most]"),
        ("stages.joint.augment.zoom=[0, 2]", "zoom is [0, 2], not [least, most]"),
        ("stages.joint.augment.cloud_strength=[3, -2]", "cloud_strength is [3, -2], not [least, most]"),
        ("stages.joint.augment.haze_strength=[0, 0]", "haze_strength is [0, 0], not [least, most]"),
        ("stages.joint.augment={color: 0.5, color_most: 0.4}", "color_most is 0.4, below color, 0.5"),
        ("data.synthetic_share=0.5", "data.pairs is empty"),
        ("model.bands=[red, red, blue]", "model.bands is [red, red, blue]; name each band once"),
        ("stages.joint={steps: 1, patch_px: 32, fused_px: 64}", "fused_px is 64, above its patch_px, 32"),
        ("stages.joint.lr", "not of the form a.b=value"),
        ("name.x=1", "holds a value, not fields"),
    ],
)
def test_a_wrong_override_is_named_with_its_mend(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(CONFIGS[0].parent / "toy.yaml", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("", "holds no fields"),
        ("a: [", "is not YAML"),
        ("name: x", "stages is missing"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "module", ["declouder", "declouder.config", "declouder.raster", "declouder.mosaic", "declouder.cli"]
)
def test_light_modules_load_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_set_of_pairs_is_a_root_or_a_row_of_the_catalog():
    toy = CONFIGS[0].parent / "toy.yaml"
    config = load_config(toy, ["data.pairs=[RICE1, {set: CUHK-CR1, root: CUHK, bands: rgbn}]"])
    assert [source.root for source in config.data.pairs] == [Path("RICE1"), Path("CUHK")]
    assert [(source.set, source.bands) for source in config.data.pairs] == [(None, None), ("CUHK-CR1", "rgbn")]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.pairs=[{root: a, sett: b}]"], "data.pairs.0.sett is not a field; did you mean 'set'?"),
        (["data.pairs=[a, b]", "data.exclude=x"], "data.exclude is meant for one set of pairs"),
        (["data.range=[5, 5]"], "data.range is not [black, white]"),
    ],
)
def test_wrong_sets_of_pairs_are_named(overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_config(CONFIGS[0].parent / "toy.yaml", overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "field"),
    [
        ("denoiser", "perceptual_weight"),
        ("denoiser", "log_perceptual_weight"),
        ("denoiser", "ssim_weight"),
        ("denoiser", "psnr_weight"),
        ("denoiser", "fused_px"),
        ("reference", "fused_px"),
    ],
)
def test_a_field_that_does_nothing_in_a_stage_is_named(stage, field):
    with pytest.raises(ConfigError, match=rf"stages\.{stage}\.{field} does nothing"):
        load_config(CONFIGS[0].parent / "toy.yaml", [f"stages.{stage}.{field}=8"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["stages.reference.patch_px=8", "stages.reference.ssim_weight=0.1"],
            "patch_px is 8, below the 11 px of SSIM",
        ),
        (
            ["stages.joint.patch_px=32", "stages.joint.perceptual_weight=1"],
            "patch_px is 32, below the 34 px that LPIPS",
        ),
        (
            ["stages.joint.patch_px=96", "stages.joint.fused_px=32", "stages.joint.log_perceptual_weight=1"],
            "fused_px is 32, below the 34 px that LPIPS sees",
        ),
        (["model.w_bounds=[1, 0.3]"], "w_bounds is not [w_min, w_max]"),
        (["stages={}"], "stages"),
        (["model.num_inference_steps=2000"], "model.num_inference_steps"),
        (["seed=99999999999999999999999"], "seed"),
    ],
)
def test_what_would_fail_in_the_middle_of_a_run_is_named_before(overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_config(TOY, overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_field_that_is_named_twice_is_told(tmp_path):
    text = TOY.read_text()
    (tmp_path / "a.yaml").write_text(text + "seed: 5\n" if "\nseed:" in text else text + "seed: 5\nseed: 6\n")
    with pytest.raises(ConfigError, match=r"a\.yaml is not YAML: seed is named twice"):
        load_config(tmp_path / "a.yaml")
