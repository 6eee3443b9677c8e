"""What each stage learns by and is scored by."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from declouder.data.training import TrainingData
from declouder.errors import ConfigError, ModelError
from declouder.fusion import predict_x0
from declouder.losses import fidelity_loss
from declouder.networks import CompactNet, Denoiser, MemoryNet
from declouder.perceptual import LEAST_DISTANCE
from declouder.training import StageModule
from declouder.training import stages as stages_module
from declouder.training.networks import frozen_network
from declouder.training.stages import LPIPS_STRIDE, _perceptual_loss, _square_of
from toy import stage_module, toy, train_quietly


def test_the_held_out_loss_is_of_steps_that_the_stage_learns(tmp_path, monkeypatch):
    asked = []

    def forward(self, x, t, *, real=Denoiser.forward):
        asked.append(t.tolist())
        return real(self, x, t)

    monkeypatch.setattr(Denoiser, "forward", forward)
    train_quietly(toy(), tmp_path / "whole", stages=["reference"])
    config = toy("stages.denoiser.max_t=60", "stages.denoiser.steps=1", "stages.denoiser.validate_every=1")
    train_quietly(config, tmp_path / "whole", stages=["denoiser"])
    scored = [t for t in asked if len(t) == 10]
    assert scored and all(t == [3, 9, 15, 21, 27, 33, 39, 45, 51, 57] for t in scored)


def test_time_steps_are_drawn_below_max_t():
    module, clear = stage_module("denoiser", "stages.denoiser.max_t=10"), torch.zeros(3, 8, 8)
    drawn = {int(module._draw(seed, clear)[0]) for seed in range(200)}
    assert drawn == set(range(10))


def test_less_noise_left_is_a_better_score():
    module = stage_module("denoiser")
    assert module._score_of({"noise_loss": 1.0}) > module._score_of({"noise_loss": 2.0})


def test_lpips_and_its_logarithm_are_weighed_as_the_recipe_says(monkeypatch):
    stand_in = lambda bands: lambda image, clear: torch.full((len(image),), 0.2)  # noqa: E731
    monkeypatch.setattr("declouder.training.module.PerceptualLoss", stand_in)
    weights = ("perceptual_weight=0.3", "log_perceptual_weight=0.7", "patch_px=40")
    module = stage_module("joint", *(f"stages.joint.{field}" for field in weights))
    image = torch.zeros(2, 3, 40, 40)
    found = _perceptual_loss(module, image, image, {"seed": torch.tensor([5, 6])})
    assert float(found) == pytest.approx(0.3 * 0.2 + 0.7 * math.log(0.2 + LEAST_DISTANCE))


def fused_stage(stage: str = "joint", **fields) -> StageModule:
    config = toy(*(f"stages.{stage}.{name}={value}" for name, value in fields.items()))
    data = TrainingData(config.data, band_names=config.model.bands, seed=config.seed)
    module = StageModule(stage, config, data)
    with torch.no_grad():
        for network in (module.network("denoiser"), module.network("weight_net")):
            for parameter in network.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return module


def batch_of(module: StageModule) -> dict[str, torch.Tensor]:
    return torch.utils.data.default_collate([module.samples[number] for number in range(2)])


def test_noise_on_the_reference_is_what_leads_back_to_the_clear_image():
    module = fused_stage(noised="reference")
    batch = batch_of(module)
    reference = torch.rand_like(batch["clear"])
    x_t, eps, _, alpha_bar = module.noisy(batch, reference)
    torch.testing.assert_close(x_t - alpha_bar.sqrt() * batch["clear"], (1 - alpha_bar).sqrt() * eps)
    as_published, *_ = fused_stage().noisy(batch, reference)
    torch.testing.assert_close(x_t - as_published, alpha_bar.sqrt() * (reference - batch["clear"]))


@pytest.mark.parametrize("through", [False, True])
def test_the_fused_image_teaches_the_denoiser_only_where_the_recipe_says_so(through):
    module = fused_stage(through_denoiser=str(through).lower(), noise_weight=0)
    module.stage.loss(module, batch_of(module)).backward()
    gradients = [p.grad.abs().max() for p in module.network("denoiser").parameters() if p.grad is not None]
    assert (max(gradients, default=0) > 0) == through
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in module.network("weight_net").parameters())


@pytest.mark.parametrize("stage", ["weights", "joint"])
def test_a_frozen_reference_runs_as_in_the_pipeline_at_any_precision(stage):
    module = fused_stage(stage)
    lower = {}
    for name in ("reference", "denoiser", "weight_net"):
        hook = lambda *_, name=name: lower.update({name: torch.is_autocast_enabled("cpu")})  # noqa: E731
        module.network(name).register_forward_pre_hook(hook)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(module.stage.loss(module, batch_of(module)))
    assert lower == {"reference": False, "denoiser": True, "weight_net": True}


@pytest.mark.parametrize("stage", ["weights", "joint"])
def test_a_square_of_a_patch_is_fused_with_the_reference_of_the_whole(stage, monkeypatch):
    module = fused_stage(stage, patch_px=48, fused_px=16)
    batch = batch_of(module)
    whole = module.network("reference")(batch["cloudy"])
    seen: tuple[list[tuple[int, int]], ...] = ([], [])

    def spy(*arguments, cloudy: torch.Tensor, reference: torch.Tensor, **others):
        for number, (top, left) in itertools.product(range(2), itertools.product(range(0, 33, 8), repeat=2)):
            square = (number, ..., slice(top, top + 16), slice(left, left + 16))
            if torch.equal(cloudy[number], batch["cloudy"][square]):
                torch.testing.assert_close(reference[number], whole[square])
                seen[number].append((top // 8, left // 8))
        return predict_x0(*arguments, cloudy=cloudy, reference=reference, **others)

    monkeypatch.setattr(stages_module, "predict_x0", spy)
    for seed in range(0, 16 * 25, 16):
        assert module.stage.loss(module, batch | {"seed": torch.tensor([seed, 99])}).ndim == 0
    assert sorted(seen[0]) == [(top, left) for top in range(5) for left in range(5)]
    assert seen[1] == [(1, 1)] * 25  # of 99 // 16


def test_the_fused_image_may_be_judged_as_the_reference_is():
    plain, judged = fused_stage(), fused_stage(ssim_weight=0.5, psnr_weight=0.25)
    for learnt, other in zip(plain.learning.parameters(), judged.learning.parameters(), strict=True):
        other.data.copy_(learnt.data)
    batch = batch_of(plain)
    with torch.no_grad():
        fused = stages_module._fused(plain, batch)
        added = fidelity_loss(fused.prediction.x0, batch["clear"], ssim_weight=0.5, psnr_weight=0.25)
        difference = judged.stage.loss(judged, batch) - plain.stage.loss(plain, batch)
    torch.testing.assert_close(difference, added)
    assert added.abs() > 0.01


def test_a_stage_with_a_perceptual_loss_is_scored_by_it(backbone, monkeypatch):
    monkeypatch.setenv("DECLOUDER_LPIPS_BACKBONE", str(backbone))
    settings = {"perceptual_weight": 0.5, "log_perceptual_weight": 0.1, "noised": "reference", "patch_px": 40}
    config = toy(
        *(f"stages.joint.{name}={value}" for name, value in settings.items()),
        "data.procedural=2",
    )
    data = TrainingData(config.data, band_names=config.model.bands, seed=config.seed)
    module, plain = StageModule("joint", config, data), StageModule("joint", toy(), data)
    batch = batch_of(module)
    with torch.no_grad():
        assert module.stage.loss(module, batch) != plain.stage.loss(plain, batch)
    scores, _ = module.score()
    expected = -scores["restored_l1"] - 0.5 * scores["restored_lpips"] - 0.1 * scores["restored_ln_lpips"]
    assert scores["score"] == pytest.approx(expected) and scores["restored_lpips"] > 0
    assert not [key for key in module.state_dict() if "perceptual" in key]


def test_a_perceptual_loss_sees_every_place_of_a_patch_alike(backbone, monkeypatch):
    monkeypatch.setenv("DECLOUDER_LPIPS_BACKBONE", str(backbone))
    module = fused_stage("weights", perceptual_weight=1.0, patch_px=40)
    seen = []

    def spy(restored: torch.Tensor, clear: torch.Tensor) -> torch.Tensor:
        assert restored.shape == clear.shape == (2, 3, 37, 37)
        places = list(itertools.product(range(4), repeat=2))
        cuts = [batch["clear"][..., down : down + 37, right : right + 37] for down, right in places]
        seen.append(
            [next(i for i, cut in enumerate(cuts) if torch.equal(image, cut[n])) for n, image in enumerate(clear)]
        )
        return restored.mean()

    monkeypatch.setattr(module.perceptual, "forward", spy)
    batch = batch_of(module)
    with torch.no_grad():
        for seed in range(16):
            module.stage.loss(module, batch | {"seed": torch.tensor([seed, 99])})
    assert sorted(place for place, _ in seen) == list(range(16))
    assert {place for _, place in seen} == {12}  # of 99: three down, none to the right


def test_a_perceptual_loss_without_a_backbone_is_an_error_of_the_recipe(monkeypatch, tmp_path):
    monkeypatch.delenv("DECLOUDER_LPIPS_BACKBONE", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ConfigError, match=r"is above 0, and LPIPS needs .*: export DECLOUDER_LPIPS_BACKBONE="):
        fused_stage(log_perceptual_weight=0.1, patch_px=40)


def test_a_network_that_chooses_can_learn_by_its_choices():
    chooser = "model.reference.options={block: residual, widths: [8, 16], blocks: [1, 1], guided: [3]}"
    losses = []
    for weight in (0, 1, 2, 3):
        config = toy(chooser, f"stages.reference.choice_weight={weight}")
        data = TrainingData(config.data, band_names=config.model.bands, seed=config.seed)
        module = StageModule("reference", config, data)
        losses.append(float(module.stage.loss(module, batch_of(module)).detach()))
    assert losses[1] > losses[0]
    # From 0 to 1 the network's own image is supervised too.
    choice = losses[2] - losses[1]
    assert choice > 0 and losses[3] - losses[2] == pytest.approx(choice, rel=1e-4)
    assert losses[1] - losses[0] > choice
    with pytest.raises(ConfigError, match="choice_weight wants a network that chooses"):
        toy("stages.reference.choice_weight=1")


def test_of_ambiguous_samples_a_network_can_keep_to_an_earlier_one(tmp_path, toy_run):
    keeps = f"stages.reference.keep_to={toy_run / 'model'}"
    config = toy(keeps, "stages.reference.augment.even_haze=true")
    data = TrainingData(config.data, band_names=config.model.bands, seed=config.seed)
    module = StageModule("reference", config, data)
    batch = batch_of(module)
    assert not batch["ambiguous"].any()
    earlier = CompactNet.from_pretrained(toy_run / "model" / "reference")
    module.teacher = earlier.requires_grad_(False)
    with torch.no_grad():
        usual = module.stage.loss(module, batch)
        taught = earlier(batch["cloudy"])
        expected = module.stage.loss(module, batch | {"clear": torch.stack([batch["clear"][0], taught[1]])})
        kept = module.stage.loss(module, batch | {"ambiguous": torch.tensor([False, True])})
    torch.testing.assert_close(kept, expected, atol=1e-5, rtol=0)
    assert abs(float(kept - usual)) > 1e-3
    learns = {id(parameter) for parameter in module.configure_optimizers()["optimizer"].param_groups[0]["params"]}
    assert not any(id(parameter) in learns for parameter in module.teacher.parameters())
    train_quietly(config, tmp_path, stages=["reference"])
    saved = torch.load(tmp_path / "reference" / "last.ckpt", weights_only=False)["state_dict"]
    for key, weight in earlier.state_dict().items():
        assert torch.equal(saved[f"teacher.{key}"], weight)
    nowhere = toy("stages.reference.keep_to=nowhere", "stages.reference.augment.even_haze=true")
    with pytest.raises(ModelError, match=r"stages\.reference\.keep_to: nowhere does not exist"):
        train_quietly(nowhere, tmp_path / "other", stages=["reference"])


def test_the_network_to_keep_to_is_what_it_was_with_its_own_settings(tmp_path):
    small = {"widths": (8, 16), "blocks": (1, 1)}
    CompactNet(**small, guided=(3,), third_choice=True, keep_clear=12.0).save_pretrained(
        tmp_path / "earlier" / "reference"
    )
    kept = frozen_network(CompactNet(**small, filling=8), str(tmp_path / "earlier"), stage="reference")
    earlier, x = CompactNet.from_pretrained(tmp_path / "earlier" / "reference"), torch.rand(1, 3, 32, 32)
    assert kept.config["keep_clear"] == 12 and torch.equal(kept(x), earlier(x))
    assert not any(parameter.requires_grad for parameter in kept.parameters())
    with pytest.raises(ModelError, match=r"keep_to: .* is no CompactNet to keep to: it has 3 bands, here are 4"):
        frozen_network(CompactNet(**small, bands=4), str(tmp_path / "earlier"), stage="reference")
    with pytest.raises(ModelError, match=r"keep_to: .* holds no reference"):
        frozen_network(CompactNet(**small), str(tmp_path / "earlier" / "reference"), stage="reference")
    with pytest.raises(
        ModelError, match=r"keep_to: .* is a CompactNet, the recipe's reference network a MemoryNet"
    ):
        frozen_network(MemoryNet(), str(tmp_path / "earlier"), stage="reference")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["stages.joint.keep_to=shipped"], "stages.joint.keep_to does nothing"),
        (["stages.reference.keep_to=shipped"], "which finds the samples"),
    ],
)
def test_keeping_to_nothing_is_an_error_of_the_recipe(fields, message):
    with pytest.raises(ConfigError, match=message):
        toy(*fields)


def test_parts_of_patches_are_cut_for_each_sample_so_that_summed_batches_stay_equal(backbone, monkeypatch):
    monkeypatch.setenv("DECLOUDER_LPIPS_BACKBONE", str(backbone))
    module = fused_stage("weights", patch_px=72, fused_px=48, perceptual_weight=1.0)
    whole = batch_of(module) | {"seed": torch.tensor([5 + 16 * 7, 10])}

    def gradients(*batches) -> list[torch.Tensor]:
        module.zero_grad()
        for batch in batches:
            (module.stage.loss(module, batch) / len(batches)).backward()
        return [parameter.grad.clone() for parameter in module.learning.parameters() if parameter.grad is not None]

    parts = [{key: value[n : n + 1] for key, value in whole.items()} for n in range(2)]
    for large, summed in zip(gradients(whole), gradients(*parts), strict=True):
        torch.testing.assert_close(large, summed, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("side", "places"), [(44, {0}), (40, {0, 8}), (24, {0, 8, 16, 24})])
def test_a_square_lies_within_the_patch_on_a_grid_of_8_px(side, places):
    rows = torch.arange(48.0).view(1, 1, 48, 1).expand(64, 3, 48, 48)
    batch = {"cloudy": rows, "clear": rows, "seed": torch.arange(64) * LPIPS_STRIDE**2}
    cut, reference = _square_of(batch, rows, side)
    assert cut["cloudy"].shape == cut["clear"].shape == reference.shape == (64, 3, side, side)
    assert {int(image[0, 0, 0]) for image in reference} == places
    torch.testing.assert_close(cut["clear"], reference)


def test_a_score_is_measured_by_the_fields_that_it_depends_on(monkeypatch):
    monkeypatch.setattr("declouder.training.module.PerceptualLoss", lambda bands: torch.nn.Identity())
    noise = stage_module("denoiser", "stages.denoiser.max_t=60").measured_by
    assert noise == {"max_t": 60, "patch_px": 24, "downscale": 4}
    assert stage_module("joint").measured_by == {}
    seen = stage_module("joint", "stages.joint.perceptual_weight=0.3", "stages.joint.patch_px=40").measured_by
    assert seen == {"perceptual_weight": 0.3, "log_perceptual_weight": 0.0}
