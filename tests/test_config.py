import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from declouder.config import dump_config, load_config, parse_config, reading, told_fields
from declouder.config.recipe import LPIPS_LOSS_PX, SSIM_LOSS_PX
from declouder.errors import ConfigError
from declouder.metrics import GAUSSIAN, LPIPS_SMALLEST_PX
from declouder.training.stages import LPIPS_STRIDE

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


def test_the_page_of_fields_is_what_the_fields_say():
    maker = Path(__file__).parent.parent / "benchmarks" / "make_recipe_page.py"
    done = subprocess.run([sys.executable, maker, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_set_wins_over_the_file_and_reads_numbers_as_people_write_them():
    config = load_config(TOY, ["stages.joint.lr=1e-5", "data.workers=2", "name=x"])
    assert config.stages["joint"].lr == 1e-5
    assert config.data.workers == 2
    assert config.name == "x"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.joint.lrr=1", "stages.joint.lrr is not a field; did you mean 'lr'?"),
        ("data.hold_outt=0.1", "data.hold_outt is not a field; did you mean 'hold_out'?"),
        ("data.pairs=own", "data.pairs is 'own'; give a list, such as [own]"),
        ("nmae=1", "nmae is not a field; did you mean 'name'?"),
        ("stages.joint.augment.flip=none", "did you mean 'flips'?"),
        ("stages.jiont.lr=1", "stages.jiont"),
        ("stages.joint.lr=yes", "stages.joint.lr: yes and no are no numbers"),
        ("seed=true", "seed: yes and no are no numbers"),
        ("model.w_bounds=[true, 1]", "model.w_bounds: yes and no are no numbers"),
        ("name=../x", "name is '../x'; the run goes to runs/NAME"),
        ("name=..", "name is '..'; the run goes to runs/NAME"),
        ("stages.joint.lr=-1", "stages.joint.lr is -1; give more than 0"),
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
        load_config(TOY, [override])
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
    config = load_config(TOY, ["data.pairs=[RICE1, {set: CUHK-CR1, root: CUHK, bands: rgbn}]"])
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
        load_config(TOY, overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "field", "value"),
    [
        ("denoiser", "perceptual_weight", "8"),
        ("denoiser", "log_perceptual_weight", "8"),
        ("denoiser", "ssim_weight", "8"),
        ("denoiser", "psnr_weight", "8"),
        ("denoiser", "fused_px", "8"),
        ("reference", "fused_px", "8"),
        ("denoiser", "noised", "reference"),
        ("reference", "max_t", "10"),
        ("weights", "noise_weight", "7"),
        ("weights", "through_denoiser", "true"),
        ("weights", "edge_weight", "5"),
        ("joint", "choice_weight", "3"),
        ("joint", "keep_to", "shipped"),
    ],
)
def test_a_field_that_does_nothing_in_a_stage_is_named(stage, field, value):
    with pytest.raises(ConfigError, match=rf"stages\.{stage}\.{field} does nothing"):
        load_config(TOY, [f"stages.{stage}.{field}={value}"])
    written_out = parse_config(load_config(TOY).model_dump(mode="json"), source="dumped")
    assert written_out == load_config(TOY)  # every field of every stage, at its default


@pytest.mark.parametrize(
    ("field", "value", "needed"),
    [
        ("calm", "0.5", "cloudless"),
        ("cloudless_color", "0.5", "cloudless"),
        ("haze_strength", "[0.5, 2]", "even_haze"),
        ("haze_clean", "0.5", "even_haze"),
        ("haze_color", "0.5", "even_haze"),
        ("haze_relight", "0.5", "even_haze"),
        ("relight_lifts", "0.1", "relight"),
    ],
)
def test_an_augmentation_that_does_nothing_without_another_is_named(field, value, needed):
    given = f"stages.reference.augment.{field}={value}"
    with pytest.raises(ConfigError, match=rf"augment\.{field} does nothing without augment\.{needed}"):
        load_config(TOY, [given])
    load_config(TOY, [given, f"stages.reference.augment.{needed}={'true' if needed == 'even_haze' else '0.5'}"])


def test_patience_wants_pairs_that_are_held_out():
    patient = ["stages.joint.patience=2", "data.pairs=[x]"]
    load_config(TOY, patient)
    with pytest.raises(ConfigError, match=r"stages\.joint\.patience does nothing where data\.hold_out is 0"):
        load_config(TOY, [*patient, "data.hold_out=0"])


@pytest.mark.parametrize("text", ["32", "'32'", '"32"'])
def test_what_stands_in_quotes_is_text_and_so_is_a_precision(text):
    assert load_config(TOY, [f"precision={text}"]).precision == "32"
    assert load_config(TOY, ["name='2024'"]).name == "2024"
    assert load_config(TOY, ["stages.joint.lr=1e-7"]).stages["joint"].lr == 1e-7


def test_what_a_recipe_sets_is_what_brings_its_defaults_to_it():
    config = load_config(TOY, ["stages.joint.augment.zoom=[0.5, 2]", "data.pairs=[{root: a, bands: rgb}]"])
    told = told_fields(config.model_dump(mode="json"))
    assert told["stages.joint.augment.zoom"] == [0.5, 2.0]
    assert told["data.pairs"] == [{"root": "a", "bands": "rgb"}]
    assert told["name"] == "toy" and "stages.joint.patience" not in told
    paired = load_config(TOY, ["data.pairs=[a]", "data.synthetic_share=0.0", "data.procedural=0"])
    assert not {"data.synthetic_share", "data.procedural"} & told_fields(paired.model_dump(mode="json")).keys()
    least = {"name": "toy", "stages": {name: {"steps": 1} for name in config.stages}}
    again: dict[str, Any] = {**least, "data": {}}
    for place, value in told.items():
        *parents, last = place.split(".")
        node = again
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    assert parse_config(again, source="again") == config


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
        (["model.w_bounds=[-.inf, .inf]"], "model.w_bounds"),
        (["stages.joint.augment.zoom=[1, .inf]"], "zoom"),
        (["stages.joint.lr=.nan"], "stages.joint.lr"),
        (["stages={}"], "stages"),
        (["model.num_inference_steps=2000"], "model.num_inference_steps"),
        (["seed=99999999999999999999999"], "seed"),
    ],
)
def test_what_would_fail_in_the_middle_of_a_run_is_named_before(overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_config(TOY, overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["2024-99-99", "[" * 3000], ids=["no date", "deep"])
def test_what_yaml_cannot_make_a_value_of_is_told(value, tmp_path):
    (tmp_path / "a.yaml").write_text(f"name: {value}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml is not YAML"):
        load_config(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="is not a YAML value; mend or quote it"):
        load_config(TOY, [f"name={value}"])


@pytest.mark.parametrize(
    ("text", "value"),
    [("10", 10), ("010", 10), ("+7", 7), ("-7", -7), ("1e-4", 1e-4), ("1.5E3", 1500.0), (".5", 0.5), ("3.", 3.0)],
)
def test_numbers_are_read_as_people_write_them(text, value, tmp_path):
    (tmp_path / "a.yaml").write_text(f"a: {text}\n")
    loader = reading._Loader
    for found in (yaml.load(text, Loader=loader), yaml.load((tmp_path / "a.yaml").read_text(), Loader=loader)["a"]):
        assert found == value and type(found) is type(value)


def test_what_is_no_number_of_steps_is_told():
    for text in ("1:30", "0x1F", "ten"):
        with pytest.raises(ConfigError, match=r"stages\.joint\.steps is .*; give a whole number"):
            load_config(TOY, [f"stages.joint.steps={text}"])


def test_a_field_that_is_named_twice_on_the_command_line_is_told():
    with pytest.raises(ConfigError, match=r"--set model\.denoiser: .*\(heads is named twice\); mend or quote it"):
        load_config(TOY, ["model.denoiser={heads: 1, heads: 2}"])


def test_a_misspelt_field_is_told_before_the_one_that_it_leaves_out():
    with pytest.raises(ConfigError, match=r"data\.pairs\.0\.rot is not a field; did you mean 'root'\?"):
        load_config(TOY, ["data.pairs=[{rot: RICE1}]"])


def test_a_field_that_is_named_twice_is_told(tmp_path):
    text = TOY.read_text()
    (tmp_path / "a.yaml").write_text(text + "seed: 5\n" if "\nseed:" in text else text + "seed: 5\nseed: 6\n")
    with pytest.raises(ConfigError, match=r"a\.yaml is not YAML: seed is named twice"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.procedural=0"], "nothing to learn from"),
        (["data.synthetic_share=0.5"], r"synthetic_share is below 1 but data\.pairs is empty"),
        (["data.pairs=[x]", "data.procedural=0"], r"synthetic_share is above 0 but data names no clear images"),
        (["model.bands=[red, red, blue]"], "name each band once"),
        (["data.range=[1, 1]"], r"data\.range is not \[black, white\]"),
    ],
)
def test_a_recipe_without_what_it_asks_for_is_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(TOY, overrides)


def test_sizes_that_are_just_large_enough_are_taken():
    # By the numbers of modules that a recipe, which loads no torch, cannot ask.
    assert len(GAUSSIAN) == SSIM_LOSS_PX
    assert LPIPS_SMALLEST_PX + LPIPS_STRIDE - 1 == LPIPS_LOSS_PX
    load_config(TOY, ["stages.reference.patch_px=11", "stages.reference.ssim_weight=0.1"])
    load_config(TOY, ["stages.reference.patch_px=34", "stages.reference.perceptual_weight=1"])
    load_config(TOY, ["stages.joint.patch_px=32", "stages.joint.fused_px=32"])


@pytest.mark.parametrize(
    "override", ["data.hold_out=1", "stages.joint.ema=1", "stages.joint.max_t=1001", "model.strength=0"]
)
def test_a_field_beyond_its_range_is_named(override):
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        load_config(TOY, [override])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("stages.joint.lr=fast", "stages.joint.lr is 'fast'; give a number"),
        ("stages.joint.lr=.inf", "stages.joint.lr is inf; give a finite number"),
        ("stages.joint.steps=1.5", "stages.joint.steps is 1.5; give a whole number"),
        ("stages.joint.patch_px=7", "stages.joint.patch_px is 7; give 8 or more"),
        ("data.hold_out=2", "data.hold_out is 2; give less than 1"),
        ("stages.joint.noised=both", "stages.joint.noised is 'both'; give one of 'clear' or 'reference'"),
        ("data.pairs={a: 3}", "data.pairs is {'a': 3}; give a list"),
        ("data.pairs=[{root: 3}]", "data.pairs.0.root is 3; give a path"),
        ("model.bands=[]", "model.bands is []; give 1 or more of them"),
        ("data.range=[1, 2, 3]", "data.range is [1, 2, 3]; give no more than 2 of them"),
        ("model.w_bounds=[0]", "model.w_bounds is [0], which is too short; give one more"),
        ("model.w_bounds=1", "model.w_bounds is 1; give a list of two numbers"),
        ("compile=7", "compile is 7; give true or false"),
        ("model.reference=compact", "model.reference is 'compact'; give fields with their values"),
        ("stages.foo.lr=1", "stages.foo is not a field; known here: 'reference', 'denoiser', 'weights' or 'joint'"),
        ("stages.jont.lr=1", "stages.jont is not a field; did you mean 'joint'?"),
        ("seed=1e30", "seed is 1e+30; give a smaller number"),
        ("name=", "name is None; give text"),
    ],
)
def test_a_value_that_does_not_fit_is_told_with_what_is_wanted(override, told):
    with pytest.raises(ConfigError) as caught:
        load_config(TOY, [override])
    assert str(caught.value).endswith(f"toy.yaml: {told}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.clear=[clear]"], r"data\.clear does nothing where data\.synthetic_share is left at 0 and no stage"),
        (
            ["data.procedural=3"],
            r"data\.procedural does nothing where data\.synthetic_share is left at 0; set",
        ),
        (["model.denoiser={1: 2}"], r"model\.denoiser: give texts, numbers, yes or no, and lists"),
        (["model.reference.options.keep_clear=2026-01-01"], r"model\.reference\.options: give texts, numbers"),
        (["model.weight_net.heads=.inf"], r"model\.weight_net: give texts, numbers"),
        (["stages.reference.augment.zoom=[16, 8]"], r"zoom is \[16, 8\][^,]*, not \[least, most\]"),
    ],
)
def test_what_would_do_nothing_or_not_come_back_from_a_file_is_refused(overrides, message, tmp_path):
    recipe = tmp_path / "a.yaml"
    recipe.write_text("name: a\ndata: {pairs: [P]}\nstages: {reference: {steps: 1}}\n")
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(recipe, overrides)
    assert "found {" not in str(caught.value)
    load_config(recipe, ["data.clear=[clear]", "stages.reference.augment.transplant=0.5"])
    load_config(recipe, ["data.clear=[clear]", "data.procedural=3", "data.synthetic_share=0"])
    assert parse_config({**yaml.safe_load(dump_config(load_config(recipe)))}, source="dump") == load_config(recipe)
