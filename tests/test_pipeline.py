import copy
import importlib
import json
import logging
import pickle
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    ModelMixin,
    UniPCMultistepScheduler,
)
from diffusers.hooks import apply_group_offloading
from PIL import Image
from safetensors.torch import load_file, save_file

from declouder import CloudRemovalPipeline, remove_clouds
from declouder.consistency import held_to_haze
from declouder.enlarging import enlarged
from declouder.errors import ModelError, OptionError
from declouder.fusion import FusedPrediction, add_noise, predict_x0
from declouder.model_identity import model_digest, precision_of, sampler_of
from declouder.networks import REFERENCES, CompactNet, Denoiser, WeightNet
from declouder.networks.squares import box_mean
from declouder.painted import painted_share
from declouder.pipeline import SAMPLERS, make_scheduler
from declouder.pipeline.folder import looks_like_hub_id
from declouder.pipeline.images import to_tensor

SMALL = {"widths": (8, 16), "attention_levels": (1,), "heads": 2, "layers": 1, "norm_groups": 4}


def awake(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Give every weight a value: zero-initialised layers would hide what lies before them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def make_tiny(bands: int = 3, **options) -> CloudRemovalPipeline:
    pipeline = CloudRemovalPipeline(
        reference=awake(CompactNet(bands=bands, widths=(8, 16), blocks=(1, 1)), 0),
        denoiser=awake(Denoiser(bands=bands, **SMALL), 1),
        weight_net=awake(WeightNet(bands=bands, **SMALL), 2),
        scheduler=make_scheduler("ddim"),
        bands=[f"band{number}" for number in range(bands)],
        **{"num_inference_steps": 3, **options},
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline() -> CloudRemovalPipeline:
    return make_tiny()


def cloudy_images(bands: int = 3, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, bands, 21, 34, generator=torch.Generator().manual_seed(3))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Given(CompactNet):
    """A reference network that gives the same images whatever it sees."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__(widths=(8, 16), blocks=(1, 1))
        self.images = images * 2 - 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.images


class PerfectDenoiser(ModelMixin):
    """Knows the clear image, and so the noise in any x_t."""

    def __init__(self, clear: torch.Tensor, alphas_cumprod: torch.Tensor) -> None:
        super().__init__()
        self.clear = torch.nn.Parameter(clear, requires_grad=False)
        self.alphas_cumprod = alphas_cumprod

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha_bar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (x[:, : self.clear.shape[1]] - alpha_bar.sqrt() * self.clear) / (1 - alpha_bar).sqrt()


@pytest.mark.parametrize("strength", [1.0, 0.35])
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_perfect_denoiser_gives_back_the_clear_image_with_every_scheduler(sampler, strength):
    pipeline, clear = make_tiny(), cloudy_images() * 2 - 1
    pipeline.scheduler = make_scheduler(sampler)
    pipeline.denoiser = PerfectDenoiser(clear, pipeline.scheduler.alphas_cumprod)
    for steps in (1, 2, 10):
        images = pipeline(
            cloudy_images().flip(0),
            num_inference_steps=steps,
            strength=strength,
            w_bounds=(0, 0),
            generator=seeded(),
            output_type="pt",
        ).images
        assert torch.allclose(images * 2 - 1, clear, atol=2e-4)


@pytest.mark.parametrize("solver", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_a_solver_of_leading_steps_begins_as_late_as_any_other(solver):
    pipeline, clear = make_tiny(), cloudy_images() * 2 - 1
    pipeline.scheduler = solver.from_config(make_scheduler("ddim").config)
    pipeline.denoiser = PerfectDenoiser(clear, pipeline.scheduler.alphas_cumprod)
    # 20 steps from 0.02 on are the last of a schedule of 1000, for which these have one place too few.
    images = pipeline(
        cloudy_images().flip(0),
        num_inference_steps=20,
        strength=0.02,
        w_bounds=(0, 0),
        generator=seeded(),
        output_type="pt",
    ).images
    assert torch.allclose(images * 2 - 1, clear, atol=2e-4)
    with pytest.raises(OptionError, match="cannot take 1000 steps with its spacing; give fewer"):
        pipeline(cloudy_images(), num_inference_steps=1000)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_full_weight_gives_the_reference_with_every_scheduler(sampler):
    pipeline = make_tiny()
    pipeline.scheduler = make_scheduler(sampler)
    result = pipeline(cloudy_images(), w_bounds=(1, 1), generator=seeded(), output_type="pt")
    assert torch.allclose(result.images, result.reference, atol=1e-5)
    assert torch.equal(result.weights, torch.ones_like(result.weights))


@pytest.mark.parametrize("enlarge", [1, 2])
def test_another_reference_may_be_given_and_the_network_is_not_asked(enlarge):
    pipeline, cloudy = make_tiny(), cloudy_images(batch=2)
    clear = torch.full_like(cloudy, 0.3)
    given = pipeline(
        cloudy, reference=clear, generator=seeded(), enlarge=enlarge, w_bounds=(1, 1), output_type="pt"
    )
    assert torch.allclose(given.images, clear, atol=1e-6) and torch.allclose(given.reference, clear, atol=1e-6)
    own = pipeline(cloudy, generator=seeded(), output_type="pt")
    pipeline.reference.forward = pytest.fail
    again = pipeline(cloudy, reference=own.reference, generator=seeded(), output_type="pt")
    assert torch.allclose(again.images, own.images, atol=1e-4)
    as_array = own.reference.permute(0, 2, 3, 1).numpy()
    assert torch.equal(
        pipeline(cloudy, reference=as_array, generator=seeded(), output_type="pt").images, again.images
    )


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        (torch.zeros(1, 3, 32, 40), "reference: 1 images of 40 x 32 px, the cloudy ones are 2 of 48 x 32"),
        (torch.zeros(2, 4, 32, 48), "reference: the image has 4 bands"),
        (torch.full((2, 3, 32, 48), 7.0), "reference: the image spans 7 to 7"),
    ],
)
def test_a_reference_that_does_not_fit_is_told(pipeline, reference, told):
    with pytest.raises(OptionError, match=re.escape(told)):
        pipeline(torch.zeros(2, 3, 32, 48), reference=reference, enlarge=2)


def test_no_steps_give_the_reference_image():
    pipeline, cloudy = make_tiny(), cloudy_images()
    result = pipeline(cloudy, num_inference_steps=0, output_type="pt")
    assert torch.equal(result.images, result.reference)
    # The pipeline's quick path sums in another order.
    assert torch.allclose(result.reference, (pipeline.reference(cloudy * 2 - 1) + 1) / 2, atol=1e-6)


@pytest.mark.parametrize("number", [0, 1])
def test_only_images_that_were_painted_take_steps(number):
    texture = 0.5 + 0.1 * torch.randn(1, 3, 24, 32, generator=seeded(5)).clamp(-4, 4)
    smooth, left = torch.full_like(texture, 0.5), 0.5 + 0.1 * (texture - 0.5)  # of that the reference leaves all
    order = [number, 1 - number]
    cloudy, given = torch.cat([texture, left])[order], torch.cat([smooth, left])[order]
    pipeline, noise, other = make_tiny(), torch.randn(cloudy.shape, generator=seeded(6)), 1 - number
    pipeline.reference = Given(given)
    everywhere = pipeline(cloudy, latents=noise, output_type="pt")
    painted = pipeline(cloudy, latents=noise, least_painted=0.5, output_type="pt")
    assert torch.allclose(painted.images[number], everywhere.images[number], atol=1e-6)
    assert torch.allclose(painted.weights[number], everywhere.weights[number], atol=1e-6)
    assert torch.equal(painted.images[other], painted.reference[other]) and (painted.weights[other] == 1).all()
    assert (everywhere.images[other] != painted.images[other]).any()


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_steps_begin_at_the_noised_reference_or_at_pure_noise(strength, monkeypatch):
    pipeline, cloudy = make_tiny(), cloudy_images()
    noise, seen = torch.randn(cloudy.shape, generator=seeded(6)), []

    def forward(self, x, t, *, real=Denoiser.forward):
        seen.append((x.clone(), int(t[0])))
        return real(self, x, t)

    monkeypatch.setattr(Denoiser, "forward", forward)
    pipeline.quick = False
    found = pipeline(cloudy, latents=noise, strength=strength, num_inference_steps=4, output_type="pt")
    (x, t), reference = seen[0], found.reference * 2 - 1
    expected = noise if strength == 1 else pipeline.scheduler.add_noise(reference, noise, torch.tensor([t]))
    assert torch.allclose(x[:, :3], expected, atol=1e-5) and (t > 500) == (strength == 1)


@pytest.mark.parametrize("name", ["strength", "w_bounds", "num_inference_steps"])
def test_a_model_samples_as_it_was_saved(name):
    pipeline, cloudy = make_tiny(), cloudy_images()
    value = {"strength": 0.35, "w_bounds": (0.0, 0.5), "num_inference_steps": 2}[name]

    def image(**options) -> torch.Tensor:
        return pipeline(cloudy, generator=seeded(), output_type="pt", **options).images

    before, given = image(), image(**{name: value})
    pipeline.register_to_config(**{name: value})
    assert torch.equal(image(), given) and not torch.equal(image(), before)


def hazy_and_smoothed(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images under an even haze, and what a network may make of them: their finest texture is gone."""
    texture = torch.rand(batch, 3, 80, 96, generator=torch.Generator().manual_seed(5)) - 0.5
    clear = (0.4 + 4 * box_mean(box_mean(texture, 9), 9) + 0.03 * texture).clamp(0, 1)
    smoothed = box_mean(clear, 3)
    return 0.78 - 0.5 * (1 - clear), smoothed


@pytest.mark.parametrize("least_painted", [0.0, 1.0])
def test_the_result_is_held_to_the_law_of_haze_as_the_model_was_saved_or_the_call_says(least_painted, tmp_path):
    cloudy, reference = hazy_and_smoothed()
    pipeline = make_tiny(consistency=0.5)

    def image(**options) -> torch.Tensor:
        settings = {"w_bounds": (1, 1), "least_painted": least_painted, "output_type": "pt", **options}
        return pipeline(cloudy, reference=reference, generator=seeded(), **settings).images

    plain, held = image(consistency=0), image()
    torch.testing.assert_close(plain, reference)
    assert torch.equal(held, (held_to_haze(2 * cloudy - 1, 2 * reference - 1, 0.5) + 1) / 2)
    assert float((held - plain).abs().max()) > 2e-3
    assert torch.equal(image(consistency=1, num_inference_steps=0), plain)  # the reference network's own image
    pipeline.save_pretrained(tmp_path / "model")
    assert CloudRemovalPipeline.from_pretrained(tmp_path / "model").config.consistency == 0.5


def test_a_model_that_says_nothing_of_consistency_has_none(tmp_path):
    make_tiny().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index.pop("consistency") == 0
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert CloudRemovalPipeline.from_pretrained(tmp_path).config.consistency == 0
    with pytest.raises(OptionError, match="consistency is -1"):
        make_tiny(consistency=-1)


def test_images_stay_in_range_whatever_the_weights_say():
    pipeline = make_tiny()
    with torch.no_grad():
        for parameter in pipeline.weight_net.parameters():
            parameter.mul_(20)
    found = pipeline(cloudy_images(), w_bounds=(-1000, 1000), generator=seeded(), output_type="pt")
    assert float(found.weights.abs().max()) > 2
    assert float(found.images.min()) >= 0 and float(found.images.max()) <= 1


def test_the_papers_sampler_ends_at_the_clear_image_and_clips_nothing():
    settings = make_scheduler("ddim").config
    assert settings.set_alpha_to_one is True and settings.clip_sample is False


def test_networks_see_an_enlarged_image_and_the_result_is_of_its_own_size():
    pipeline, cloudy = make_tiny(), cloudy_images()
    noise = torch.randn(2, 3, 42, 68, generator=seeded(6))
    found = pipeline(cloudy, enlarge=2, latents=noise, output_type="pt")
    large = pipeline(enlarged(cloudy, 2), latents=noise, output_type="pt")
    for made, expected in ((found.images, large.images), (found.weights, large.weights)):
        assert made.shape == cloudy.shape
        assert torch.allclose(made, torch.nn.functional.avg_pool2d(expected, 2), atol=1e-5)
    with pytest.raises(OptionError, match=r"latents are \(2, 3, 21, 34\), the images \(2, 3, 42, 68\)"):
        pipeline(cloudy, enlarge=2, latents=noise[..., :21, :34])


def test_an_enlarged_image_that_is_left_as_it_is_comes_back_as_it_was():
    pipeline, cloudy = make_tiny(), cloudy_images()
    pipeline.reference = CompactNet(widths=(8, 16), blocks=(1, 1))  # a new one changes nothing
    images = pipeline(cloudy, enlarge=3, num_inference_steps=0, output_type="pt").images
    assert torch.allclose(images, cloudy, atol=1e-6)


def test_the_painted_share_is_that_of_pixels_which_lost_their_texture():
    cloudy = torch.rand(2, 3, 40, 60, generator=seeded(7))
    reference = cloudy.clone()
    reference[0, :, :, :30] = 0.5
    share = painted_share(cloudy, reference)
    assert share[0] == pytest.approx(0.5, abs=0.05) and share[1] == 0
    assert painted_share(torch.zeros(1, 3, 9, 9), torch.zeros(1, 3, 9, 9)) == 0  # no texture, none lost


def test_the_loop_is_the_papers_equations():
    pipeline, cloudy = make_tiny(w_bounds=(0.3, 1.0)), cloudy_images(batch=1)
    noise = torch.randn(cloudy.shape, generator=seeded(4))
    alphas = pipeline.scheduler.alphas_cumprod
    y = cloudy * 2 - 1
    reference, x_t = pipeline.reference(y), noise
    for t, before in ((666, 333), (333, 0), (0, None)):
        a, step = alphas[t], torch.tensor([t])
        eps = pipeline.denoiser(torch.cat([x_t, y], 1), step)
        x0 = ((x_t - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)
        w = pipeline.weight_net(torch.cat([x_t, y, reference], 1), step).clamp(0.3, 1)
        x0 = w * reference + (1 - w) * x0
        a_before = torch.tensor(1.0) if before is None else alphas[before]
        x_t = a_before.sqrt() * x0 + (1 - a_before).sqrt() * (x_t - a.sqrt() * x0) / (1 - a).sqrt()
    result = pipeline(cloudy, num_inference_steps=3, latents=noise, output_type="pt")
    assert torch.allclose(result.images * 2 - 1, x_t.detach().clamp(-1, 1), atol=1e-5)
    assert torch.allclose(result.weights, w.detach(), atol=1e-5)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not():
    pipeline, cloudy = make_tiny(), cloudy_images()
    first, again, other = (pipeline(cloudy, generator=seeded(s), output_type="np").images for s in (0, 0, 1))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_tensors_arrays_and_pil_images_mean_the_same():
    pipeline = make_tiny()
    dn = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    array = dn.astype(np.float32) / 255
    noise = torch.randn(1, 3, 20, 30, generator=seeded())
    tensor = torch.from_numpy(array).permute(2, 0, 1)[None]
    inputs = (tensor, array, array[None], Image.fromarray(dn), [Image.fromarray(dn)])
    outputs = [pipeline(x, latents=noise, output_type="np").images for x in inputs]
    assert all(np.allclose(outputs[0], other, atol=1e-5) for other in outputs)
    (picture,) = pipeline(tensor, latents=noise, output_type="pil").images
    assert np.abs(np.asarray(picture) / 255 - outputs[0][0]).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("bands", [1, 3, 4, 7])
@pytest.mark.parametrize("size", [(16, 16), (1, 1), (17, 30)])
def test_any_size_and_number_of_bands(bands, size):
    cloudy = torch.rand(1, bands, *size)
    result = make_tiny(bands)(cloudy, generator=seeded(), output_type="pt")
    for image in (result.images, result.reference):
        assert image.shape == cloudy.shape
        assert 0 <= image.min() <= image.max() <= 1


def test_a_saved_pipeline_comes_back_equal_and_holds_no_pickle(tmp_path):
    pipeline, cloudy = make_tiny(bands=4, w_bounds=(0.1, 0.9), strength=0.5), cloudy_images(4)
    pipeline.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    loaded = CloudRemovalPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    expected, found = (p(cloudy, generator=seeded(), output_type="np").images for p in (pipeline, loaded))
    assert np.allclose(expected, found, atol=1e-5)
    assert loaded.config.bands == [f"band{number}" for number in range(4)]
    assert (loaded.config.strength, list(loaded.config.w_bounds)) == (0.5, [0.1, 0.9])


def test_networks_in_half_precision_leave_the_samplers_sums_exact():
    pipeline, cloudy = make_tiny(), cloudy_images()
    options = {"num_inference_steps": 4, "strength": 0.2, "output_type": "pt"}
    exact = pipeline(cloudy, generator=seeded(), **options)
    half = pipeline.to(torch.bfloat16)(cloudy, generator=seeded(), **options)
    assert half.images.dtype == half.reference.dtype == torch.float32
    assert half.images.to(torch.bfloat16).float().ne(half.images).any()  # not rounded to what bfloat16 holds
    torch.testing.assert_close(half.images, exact.images, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"w_bounds": 0.5}, "w_bounds are 0.5"),
        ({"w_bounds": (0, 0.5, 1)}, "w_bounds are"),
        ({"strength": "a"}, "strength is 'a'"),
        ({"least_painted": "a"}, "least_painted is 'a'"),
        ({"consistency": 1.5}, "consistency is 1.5"),
        ({"generator": [seeded()]}, "generator is a list"),
        ({"latents": np.zeros((1, 3, 16, 16))}, "latents are a ndarray"),
    ],
)
def test_arguments_of_another_kind_are_told(options, told, pipeline):
    with pytest.raises(OptionError, match=re.escape(told)):
        pipeline(torch.zeros(1, 3, 16, 16), **options)


def test_a_pipeline_of_another_ones_parts_shares_them():
    pipeline = make_tiny(strength=0.5)
    other = CloudRemovalPipeline.from_pipe(pipeline)
    assert other.reference is pipeline.reference and other.config.strength == 0.5


def test_the_settings_of_every_sampler_are_json():
    pipeline = make_tiny()
    for sampler in SAMPLERS:
        pipeline.scheduler = make_scheduler(sampler)
        found = json.loads(json.dumps(sampler_of(pipeline), allow_nan=False))
        assert found["settings"]["num_train_timesteps"] == 1000


@pytest.mark.parametrize(
    "name",
    [
        "PNDMScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
    ],
)
@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # thousands, of diffusers
def test_a_scheduler_that_goes_on_from_noise_alone_is_told_before_it_starts(name, pipeline):
    pipeline.scheduler = getattr(diffusers, name)(prediction_type="sample")
    with pytest.raises(ModelError, match=f"{name} cannot go on from a predicted x0"):
        pipeline(torch.rand(1, 3, 16, 16), num_inference_steps=2)


def test_a_scheduler_that_cannot_do_it_is_told():
    tiny = make_tiny()
    with pytest.raises(ModelError, match="EDMEulerScheduler has no alphas_cumprod"):
        CloudRemovalPipeline(tiny.reference, tiny.denoiser, tiny.weight_net, EDMEulerScheduler())


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "x"])
def test_a_seed_that_is_none_and_an_image_that_is_no_array_are_told(seed):
    with pytest.raises(OptionError, match="seed is"):
        remove_clouds(np.zeros((16, 16, 3), np.float32), seed=seed)
    with pytest.raises(OptionError, match="the image is a Image"):
        remove_clouds(Image.new("RGB", (16, 16)))


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "RGBA", "LA"])
def test_pil_images_of_other_modes_mean_the_same_colours(mode, pipeline):
    grey = Image.fromarray(np.kron([[0, 255], [255, 0]], np.ones((16, 16))).astype(np.uint8))
    expected = pipeline(grey.convert("RGB"), num_inference_steps=0, output_type="np").images
    found = pipeline(grey.convert(mode), num_inference_steps=0, output_type="np").images
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "P", "PA", "LA"])
def test_a_picture_of_one_band_has_the_brightness_of_its_colours(mode):
    grey = Image.fromarray(np.kron([[50, 200], [200, 50]], np.ones((16, 16))).astype(np.uint8))
    picture = grey.convert("P").convert(mode) if "P" in mode else grey.convert(mode)
    expected = torch.from_numpy(np.asarray(picture.convert("L"))) / 255
    torch.testing.assert_close(to_tensor(picture, bands=1)[0, 0], expected)


def test_an_array_that_is_masked_in_part_is_refused(pipeline):
    image = np.ma.MaskedArray(np.zeros((16, 16, 3)), mask=False)
    assert pipeline(image, num_inference_steps=0, output_type="pt").images.shape == (1, 3, 16, 16)
    image.mask[3, 4] = True
    with pytest.raises(OptionError, match="some of the array is masked"):
        pipeline(image)


def test_printing_inks_are_no_image_of_four_bands():
    four = make_tiny(bands=4)
    with pytest.raises(OptionError, match="a PIL image is CMYK"):
        four(Image.new("CMYK", (16, 16)))
    assert four(Image.new("RGBA", (16, 16)), num_inference_steps=0, output_type="pt").images.shape[1] == 4


def test_a_pil_image_that_is_transparent_in_part_is_refused(pipeline):
    image = Image.new("RGBA", (32, 32), (9, 9, 9, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    with pytest.raises(OptionError, match="is transparent in part"):
        pipeline(image)


def test_a_pipeline_made_with_numbers_of_numpy_can_be_saved(tmp_path):
    made = make_tiny(num_inference_steps=np.int64(3), strength=np.float32(0.5), consistency=np.float64(0.25))
    made.save_pretrained(tmp_path)
    config = CloudRemovalPipeline.from_pretrained(tmp_path).config
    assert (config.num_inference_steps, config.strength, config.consistency) == (3, 0.5, 0.25)


def test_a_share_may_be_of_numpy():
    pipeline, cloudy = make_tiny(), cloudy_images()
    ours = [pipeline(cloudy, generator=seeded(), least_painted=share).images for share in (0.5, np.float32(0.5))]
    np.testing.assert_array_equal(*map(np.asarray, ours))


def test_half_precision_weights_load_as_float32(tmp_path):
    make_tiny().to(torch.float16).save_pretrained(tmp_path)
    loaded = CloudRemovalPipeline.from_pretrained(tmp_path)
    assert loaded.denoiser.dtype == loaded.reference.dtype == torch.float32


def test_all_of_the_shipped_model_runs_in_bfloat16():
    pipeline = CloudRemovalPipeline.from_pretrained()
    cloudy = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = pipeline(cloudy, generator=seeded(), output_type="pt").images
    found = pipeline.to(torch.bfloat16)(cloudy, generator=seeded(), output_type="pt").images
    assert (found - expected).abs().mean() < 0.01


def test_one_line_for_an_array(tmp_path, capfd):
    make_tiny().save_pretrained(tmp_path)
    image = np.random.default_rng(0).random((20, 30, 3))
    restored = remove_clouds(image, model=tmp_path, seed=1)
    assert "Loading" not in capfd.readouterr().err
    assert restored.shape == image.shape
    assert np.array_equal(restored, remove_clouds(image, model=tmp_path, seed=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": -1}, "-1 steps"),
        ({"least_painted": -0.1}, "least_painted is -0.1"),
        ({"enlarge": 5}, "enlarge is 5"),
        ({"strength": 0.0}, "strength is 0"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"latents": torch.zeros(1, 3, 4, 4)}, "latents are (1, 3, 4, 4)"),
        ({"output_type": "jpg"}, "no output_type 'jpg'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(OptionError) as caught:
        make_tiny()(cloudy_images(), **arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 4), np.float32), "4 bands, this model wants 3; pick 3 of them"),
        (np.zeros((3, 8, 9), np.float32), "wants 3; arrays are (H, W, C), tensors (B, C, H, W)"),
        (np.zeros((8, 8, 3), np.uint8), "divide by 255"),
        (np.full((8, 8, 3), 200.0), "scale it to [0, 1]"),
        (np.full((8, 8, 3), np.nan), "NaN"),
        (np.zeros((8, 8), np.float32), "give (H, W, C)"),
        ("scene.tif", "must be"),
        ([], "empty"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], "2 sizes"),
    ],
)
def test_wrong_images_are_named(image, message):
    with pytest.raises(OptionError) as caught:
        make_tiny()(image)
    assert message in str(caught.value)


def test_an_unknown_sampler_names_the_known_ones():
    with pytest.raises(OptionError, match="ddim"):
        make_scheduler("ddmi")


def test_parts_for_different_bands_do_not_go_together():
    tiny = make_tiny()
    with pytest.raises(ModelError, match="denoiser has 3 bands, the pipeline names 4"):
        CloudRemovalPipeline(tiny.reference, tiny.denoiser, tiny.weight_net, tiny.scheduler, bands=list("rgbn"))


def damage(folder, how: str) -> None:
    index = folder / "model_index.json"
    if how == "no index":
        index.unlink()
    elif how == "broken index":
        index.write_text("{")
    elif how == "foreign class":
        index.write_text(index.read_text().replace('"CloudRemovalPipeline"', '"StableDiffusionPipeline"'))
    elif how == "foreign code":
        values = json.loads(index.read_text())
        values["denoiser"] = ["os", "system"]
        index.write_text(json.dumps(values))
    elif how == "a class of another module":
        values = json.loads(index.read_text())
        values["denoiser"] = ["evil.module", "Denoiser"]
        index.write_text(json.dumps(values))
    elif how == "foreign scheduler":
        values = json.loads(index.read_text())
        values["scheduler"] = ["os", "system"]
        index.write_text(json.dumps(values))
    elif how == "no weights":
        (folder / "weight_net" / "diffusion_pytorch_model.safetensors").unlink()
    elif how == "no config":
        (folder / "denoiser" / "config.json").unlink()
    elif how == "no scheduler":
        (folder / "scheduler" / "scheduler_config.json").unlink()
    elif how == "truncated weights":
        path = folder / "reference" / "diffusion_pytorch_model.safetensors"
        path.write_bytes(path.read_bytes()[:100])
    elif how == "other shapes":
        path = folder / "denoiser" / "config.json"
        path.write_text(path.read_text().replace("16", "32"))
    elif how == "no name of a class":
        values = json.loads(index.read_text())
        values["scheduler"] = ["diffusers", 3]
        index.write_text(json.dumps(values))
    elif how in ("one word", "a number"):
        values = json.loads(index.read_text())
        values["denoiser"] = ["declouder.networks.unet"] if how == "one word" else 3
        index.write_text(json.dumps(values))
    elif how in ("a stem of 0", "no widths"):
        path = folder / "denoiser" / "config.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, **({"stem": 0} if how == "a stem of 0" else {"widths": []})}))


@pytest.mark.parametrize(
    "how",
    [
        "no index",
        "broken index",
        "foreign class",
        "foreign code",
        "foreign scheduler",
        "a class of another module",
        "no weights",
        "no config",
        "no scheduler",
        "truncated weights",
        "other shapes",
        "no name of a class",
        "one word",
        "a number",
        "a stem of 0",
        "no widths",
    ],
)
def test_a_damaged_model_folder_is_refused_in_one_line(tmp_path, how):
    make_tiny().save_pretrained(tmp_path)
    damage(tmp_path, how)
    with pytest.raises(ModelError) as caught:
        CloudRemovalPipeline.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    if how in ("one word", "a number"):
        assert "names no denoiser; save the model anew" in str(caught.value)


def test_loading_a_model_leaves_the_warnings_about_others_on(tmp_path):
    make_tiny().save_pretrained(tmp_path)
    logger = logging.getLogger("diffusers.pipelines.pipeline_utils")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        CloudRemovalPipeline.from_pretrained(tmp_path)
        assert logger.level == logging.WARNING
    finally:
        logger.setLevel(before)


def test_a_missing_model_folder_is_named():
    with pytest.raises(ModelError, match="nowhere/at/all does not exist"):
        CloudRemovalPipeline.from_pretrained("nowhere/at/all")


def test_a_pickle_in_place_of_safetensors_is_never_opened(tmp_path):
    make_tiny().save_pretrained(tmp_path)
    (tmp_path / "denoiser" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "weights")
    torch.save({"x": torch.zeros(1)}, tmp_path / "denoiser" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="lacks its weights"):
        CloudRemovalPipeline.from_pretrained(tmp_path)


def test_a_saved_model_does_not_say_where_it_was_loaded_from(tmp_path):
    make_tiny().save_pretrained(tmp_path / "first")
    CloudRemovalPipeline.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    texts = [path.read_text() for path in (tmp_path / "second").rglob("*.json")]
    assert len(texts) == 5 and not any(str(tmp_path) in text for text in texts)


def test_the_quick_path_gives_what_the_networks_as_they_are_give():
    pipeline, cloudy = make_tiny(), cloudy_images()
    quick = pipeline(cloudy, generator=seeded(), output_type="pt")
    pipeline.quick = False
    plain = pipeline(cloudy, generator=seeded(), output_type="pt")
    assert torch.allclose(quick.images, plain.images, atol=1e-4)
    assert torch.allclose(quick.weights, plain.weights, atol=1e-4)


def test_steps_in_bfloat16_leave_the_reference_as_it_is():
    pipeline, cloudy = make_tiny(), cloudy_images()
    full = pipeline(cloudy, generator=seeded(), output_type="pt")
    pipeline.steps_in_bfloat16 = True
    half = pipeline(cloudy, generator=seeded(), output_type="pt")
    assert torch.equal(half.reference, full.reference)
    assert 0 < (half.images - full.images).abs().max() < 0.05
    assert half.images.dtype == half.weights.dtype == torch.float32
    assert precision_of(pipeline) == "bfloat16"
    pipeline.quick = False
    assert precision_of(pipeline) == "float32"
    pipeline.quick = True
    pipeline.steps_in_bfloat16 = False
    assert torch.equal(pipeline(cloudy, generator=seeded(), output_type="pt").images, full.images)


class Watcher:
    """Counts calls of what it is hung on; no copy can be made of it."""

    def __init__(self):
        self.calls, self.lock = 0, threading.Lock()

    def __call__(self, *_):
        self.calls += 1


@pytest.mark.parametrize("in_bfloat16", [False, True])
@pytest.mark.parametrize("place", ["the network", "a part"])
def test_what_is_hung_on_a_network_is_called_and_the_network_computes_as_it_is(place, in_bfloat16):
    pipeline, cloudy, watcher = make_tiny(), cloudy_images(), Watcher()
    expected = pipeline(cloudy, generator=seeded(), num_inference_steps=2, output_type="pt")
    pipeline.steps_in_bfloat16 = in_bfloat16
    hung_on = pipeline.denoiser if place == "the network" else next(pipeline.denoiser.unet.children())
    handle = hung_on.register_forward_hook(watcher)
    found = pipeline(cloudy, generator=seeded(), num_inference_steps=2, output_type="pt")
    assert watcher.calls >= 2
    assert torch.allclose(found.images, expected.images, atol=1e-4)  # float32, though bfloat16 was asked for
    assert precision_of(pipeline) == "float32"
    handle.remove()
    assert precision_of(pipeline) == ("bfloat16" if in_bfloat16 else "float32")


def test_networks_of_half_precision_or_offloaded_keep_their_own_numbers():
    pipeline = make_tiny()
    pipeline.steps_in_bfloat16 = True
    assert precision_of(pipeline) == "bfloat16"
    pipeline.weight_net._hf_hook = object()
    assert precision_of(pipeline) == "float32"
    assert precision_of(make_tiny().to(torch.float16)) == "float16"


def test_group_offloading_is_no_reason_to_fail():
    pipeline, cloudy = make_tiny(), cloudy_images()
    expected = pipeline(cloudy, generator=seeded(), output_type="pt").images
    cpu = torch.device("cpu")
    for network in (pipeline.denoiser, pipeline.weight_net, pipeline.reference):
        apply_group_offloading(network, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    pipeline.steps_in_bfloat16 = True
    found = pipeline(cloudy, generator=seeded(), output_type="pt").images
    assert torch.allclose(found, expected, atol=1e-4)


def test_models_that_are_loaded_in_several_threads_leave_pytorch_as_it_was(tmp_path):
    make_tiny().save_pretrained(tmp_path)
    register, logger = torch.nn.Module.register_parameter, logging.getLogger("diffusers.pipelines.pipeline_utils")
    level = logger.level
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(CloudRemovalPipeline.from_pretrained, [tmp_path] * 8))
    assert torch.nn.Module.register_parameter is register
    assert logger.level == level
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"
    images = [each(cloudy_images(), generator=seeded(), output_type="pt").images for each in loaded]
    assert all(torch.equal(image, images[0]) for image in images)


def test_prepared_networks_do_not_travel_with_a_pipeline():
    pipeline = make_tiny()
    bare = len(pickle.dumps(pipeline))
    images = pipeline(cloudy_images(), generator=seeded(), output_type="pt").images
    assert pipeline._prepared
    text = pickle.dumps(pipeline)
    assert len(text) < 1.01 * bare
    assert torch.equal(pickle.loads(text)(cloudy_images(), generator=seeded(), output_type="pt").images, images)


def test_weights_out_of_reach_are_told():
    pipeline = make_tiny()
    pipeline.denoiser.to("meta")
    with pytest.raises(ModelError, match=r"the weights of the denoiser are out of reach, .* enable_model_cpu_off"):
        model_digest(pipeline)


def test_another_network_in_place_of_one_is_the_one_that_runs():
    pipeline, cloudy = make_tiny(), cloudy_images()
    pipeline(cloudy, generator=seeded(), output_type="pt")
    pipeline.reference = awake(CompactNet(widths=(8, 16), blocks=(1, 1)), 9)
    found = pipeline(cloudy, num_inference_steps=0, output_type="pt").images
    assert torch.allclose(found * 2 - 1, pipeline.reference(cloudy * 2 - 1), atol=1e-5)


def test_a_copy_of_a_used_pipeline_has_weights_of_its_own():
    pipeline, cloudy = make_tiny(), cloudy_images()
    before = pipeline(cloudy, num_inference_steps=0, output_type="pt").images
    changed = copy.deepcopy(pipeline)
    awake(changed.reference, 9)
    assert torch.equal(pipeline(cloudy, num_inference_steps=0, output_type="pt").images, before)
    found = changed(cloudy, num_inference_steps=0, output_type="pt").images
    assert torch.allclose(found * 2 - 1, changed.reference(cloudy * 2 - 1), atol=1e-5)


def test_one_step_of_the_papers_sampler_does_not_take_noise_for_an_image(pipeline):
    """Its "leading" kind puts a single step at t = 0."""
    pipeline.scheduler = make_scheduler("ddim")
    cloudy = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    options = {"strength": 1.0, "w_bounds": (0.0, 0.0), "output_type": "pt"}
    images = [
        pipeline(cloudy, num_inference_steps=1, generator=torch.Generator().manual_seed(seed), **options).images
        for seed in (0, 1)
    ]
    assert (images[0] - images[1]).abs().mean() < 0.05  # of noise it would be 0.3
    ten = [
        pipeline(cloudy, num_inference_steps=2, generator=torch.Generator().manual_seed(seed), **options).images
        for seed in (0, 1)
    ]
    assert (ten[0] - ten[1]).abs().mean() > 0.1


def test_the_quick_path_sees_tensors_and_layers_that_take_the_place_of_others(pipeline):
    cloudy = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def images(*, quick: bool) -> torch.Tensor:
        pipeline.quick = quick
        return pipeline(cloudy, num_inference_steps=0, output_type="pt").images

    before = images(quick=True)
    state = {key: value + 0.05 for key, value in pipeline.reference.state_dict().items()}
    pipeline.reference.load_state_dict(state, assign=True)
    assigned = images(quick=True)
    torch.testing.assert_close(assigned, images(quick=False), rtol=0, atol=1e-4)
    assert (assigned - before).abs().max() > 1e-2
    pipeline.reference.head = copy.deepcopy(pipeline.reference.head)
    with torch.no_grad():
        pipeline.reference.head.weight += 0.5
    torch.testing.assert_close(images(quick=True), images(quick=False), rtol=0, atol=1e-4)


def test_a_model_folder_that_lacks_tensors_is_refused(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "reference" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["head.weight"]
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"lacks 1 tensors of its reference, the first is head\.weight"):
        CloudRemovalPipeline.from_pretrained(tmp_path / "model")


def test_a_scheduler_that_is_set_later_is_checked_too(pipeline):
    pipeline.scheduler = DPMSolverMultistepScheduler()
    with pytest.raises(ModelError, match="expects 'epsilon' predictions"):
        pipeline(torch.zeros(1, 3, 32, 32))


def test_a_sampler_of_the_second_order_goes_all_the_way(pipeline):
    settings = dict(pipeline.scheduler.config) | {"prediction_type": "sample", "timestep_spacing": "trailing"}
    pipeline.scheduler = HeunDiscreteScheduler.from_config(settings)
    seen = []

    def spy(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(float(inputs[1][0]))

    pipeline.quick = False
    hook = pipeline.denoiser.register_forward_pre_hook(spy)
    pipeline(torch.full((1, 3, 32, 32), 0.5), num_inference_steps=4, strength=1.0)
    hook.remove()
    assert len(seen) == pipeline.evaluations(4) == 7 and seen == sorted(seen, reverse=True) and seen[-1] < 300
    seen.clear()
    hook = pipeline.denoiser.register_forward_pre_hook(spy)
    pipeline(torch.full((1, 3, 32, 32), 0.5), num_inference_steps=2, strength=0.2)
    hook.remove()
    assert len(seen) == 3 and 150 < seen[0] < 250
    assert pipeline.evaluations(0) == 0


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (EulerDiscreteScheduler, {"timestep_spacing": "linspace"}),
        (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
        (HeunDiscreteScheduler, {"timestep_spacing": "linspace"}),
        (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
        (DDIMScheduler, {}),
    ],
)
def test_networks_are_told_how_noisy_an_image_is_between_whole_steps_too(scheduler, options, pipeline, monkeypatch):
    clear, noise = cloudy_images() * 2 - 1, torch.randn(2, 3, 21, 34, generator=seeded())
    wanted = {"prediction_type": "sample", "timestep_spacing": "trailing"} | options
    pipeline.scheduler = scheduler.from_config(dict(pipeline.scheduler.config) | wanted)
    pipeline.reference = Given((clear + 1) / 2)
    off = []

    def told_the_truth(*networks, x_t, alpha_bar, **others):
        off.append(float((x_t - add_noise(clear, noise, alpha_bar)).abs().max()))
        return FusedPrediction(clear, clear, torch.ones_like(clear), noise)

    monkeypatch.setattr("declouder.pipeline.predict_x0", told_the_truth)
    pipeline((clear + 1) / 2, num_inference_steps=7, strength=0.5, latents=noise)
    assert len(off) >= 7 and max(off) < 1e-4


@pytest.mark.parametrize("sampler", ["ddim", "ddim-trailing"])
@pytest.mark.parametrize(("steps", "strength"), [(7, 1.0), (12, 0.02), (20, 0.3)])
def test_ddim_goes_where_the_networks_look_next(steps, strength, sampler, pipeline, monkeypatch):
    seen = []

    def remember(*networks, **given):
        seen.append((given["x_t"], given["alpha_bar"]))
        return predict_x0(*networks, **given)

    monkeypatch.setattr("declouder.pipeline.predict_x0", remember)
    pipeline.scheduler = make_scheduler(sampler)
    output = pipeline(
        cloudy_images(),
        num_inference_steps=steps,
        strength=strength,
        w_bounds=(1.0, 1.0),
        generator=seeded(),
        output_type="pt",
    )
    # With w = 1 each x0 is the reference, so all the way there is one noise, as much of it as their step has.
    reference = 2 * output.reference - 1
    noises = [(x_t - a.sqrt() * reference) / (1 - a).sqrt() for x_t, a in seen]
    assert len(noises) == steps
    for noise in noises[1:]:
        torch.testing.assert_close(noise, noises[0], rtol=0, atol=1e-3)


def test_noise_that_a_sampler_draws_on_the_way_follows_from_the_generator(pipeline):
    pipeline.scheduler = DDPMScheduler(prediction_type="sample", clip_sample=False)
    cloudy = torch.full((1, 3, 32, 32), 0.5)

    def image() -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return pipeline(cloudy, num_inference_steps=3, strength=1.0, generator=generator, output_type="pt").images

    assert torch.equal(image(), image())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_inference_steps": 1001}, "the model knows 1000"),
        ({"num_inference_steps": 2.0}, "give a whole number"),
        ({"w_bounds": (0.9, 0.1)}, "w_min up to w_max"),
        ({"w_bounds": (float("nan"), 1.0)}, "w_min up to w_max"),
        ({"latents": torch.full((1, 3, 32, 32), torch.nan)}, "latents hold NaN"),
        ({"output_type": "tensor"}, "no output_type 'tensor'"),
    ],
)
def test_options_that_would_make_an_image_of_nothing_are_refused(options, words, pipeline):
    with pytest.raises(OptionError, match=words):
        pipeline(torch.zeros(1, 3, 32, 32), **options)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pil_images_of_more_than_8_bits_are_refused(mode, pipeline):
    with pytest.raises(OptionError, match="of more than 8 bits"):
        pipeline(Image.new(mode, (16, 16)))
    with pytest.raises(OptionError, match="holds no pixel"):
        pipeline(torch.zeros(0, 3, 16, 16))


def test_a_dtype_may_be_called_as_diffusers_calls_it(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    loaded = CloudRemovalPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.float16)
    assert loaded.denoiser.dtype == loaded.reference.dtype == torch.float16


def test_another_seed_is_another_image(model_folder):
    image = np.random.default_rng(0).random((32, 32, 3), np.float32)
    first, again, other = (
        remove_clouds(image, model=model_folder, num_inference_steps=2, seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("option", [{"generator": torch.Generator()}, {"output_type": "pil"}])
def test_what_remove_clouds_gives_by_itself_is_refused(option):
    (name,) = option
    with pytest.raises(OptionError, match=rf"^{name} is given by remove_clouds itself"):
        remove_clouds(np.zeros((8, 8, 3), np.float32), **option)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.complex64, torch.int32])
def test_tensors_of_other_than_floats_are_refused(dtype, pipeline):
    with pytest.raises(OptionError, match=rf"the tensor is of {dtype}; give floats in \[0, 1\]"):
        pipeline(torch.ones(1, 3, 16, 16).to(dtype))


@pytest.mark.parametrize(
    ("kind", "told"), [(lambda x: x.to_sparse(), "sparse"), (lambda x: x.to("meta"), "a meta tensor")]
)
def test_tensors_without_a_number_at_each_place_are_refused(kind, told, pipeline):
    with pytest.raises(OptionError, match=f"the tensor is {told}.*; give a dense one"):
        pipeline(kind(torch.ones(1, 3, 16, 16)))


def test_steps_that_a_scheduler_does_not_know_are_told(pipeline):
    pipeline.scheduler = LCMScheduler.from_config(make_scheduler("ddim").config)
    with pytest.raises(
        OptionError, match=r"LCMScheduler cannot take 3 steps from strength 0\.02 \(.*; give others"
    ):
        pipeline(torch.full((1, 3, 16, 16), 0.5), num_inference_steps=3, strength=0.02)


def test_steps_may_be_of_any_whole_kind_and_of_no_other(pipeline):
    image = torch.full((1, 3, 16, 16), 0.5)
    for steps in (torch.tensor(2), np.int64(2)):
        assert pipeline(image, num_inference_steps=steps, output_type="pt").images.shape == image.shape
    with pytest.raises(OptionError, match=r"the number of steps is .*; give a whole number"):
        pipeline(image, num_inference_steps=np.array([2]))


@pytest.mark.parametrize(
    ("part", "home", "name", "told"),
    [
        ("denoiser", "declouder.networks", "Denoiser", "Denoiser, which this version of declouder does not know"),
        ("scheduler", "diffusers", "DDIMScheduler", "DDIMScheduler; give one of diffusers"),
    ],
)
def test_a_model_folder_that_names_a_known_class_in_other_code_does_not_run_it(
    part, home, name, told, tmp_path, monkeypatch
):
    make_tiny().save_pretrained(tmp_path / "model")
    (tmp_path / "evil_code.py").write_text(f"from {home} import {name}\n")
    monkeypatch.syspath_prepend(tmp_path)
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), part: ["evil_code", name]}))
    with pytest.raises(ModelError, match=rf"the {part} is a evil_code\.{told}"):
        CloudRemovalPipeline.from_pretrained(tmp_path / "model")
    assert "evil_code" not in sys.modules


def test_a_pickle_beside_other_safetensors_is_never_opened(tmp_path):
    make_tiny().save_pretrained(tmp_path)
    folder = tmp_path / "denoiser"
    weights = make_tiny().denoiser.state_dict()
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "other.safetensors")
    torch.save(weights, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded as a model"):
        CloudRemovalPipeline.from_pretrained(tmp_path)


def test_with_offloading_images_go_where_networks_run_and_these_are_put_back(monkeypatch):
    pipeline, called = make_tiny(), []
    monkeypatch.setattr(
        CloudRemovalPipeline,
        "_execution_device",
        property(lambda self: called.append("asked") or torch.device("cpu")),
    )
    monkeypatch.setattr(pipeline, "maybe_free_model_hooks", lambda: called.append("freed"))
    pipeline(cloudy_images(), output_type="pt")
    assert called[0] == "asked" and called[-1] == "freed"


def test_a_network_of_ones_own_is_loaded_where_it_is_put_among_the_references(tmp_path, monkeypatch):
    code = "from diffusers import ModelMixin\nfrom declouder.networks import CompactNet\n"
    code += "class Mine(CompactNet, ModelMixin):\n    pass\n"
    (tmp_path / "own_network.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    pipeline = make_tiny()
    pipeline.reference = importlib.import_module("own_network").Mine(widths=(8, 16), blocks=(1, 1))
    pipeline.register_modules(reference=pipeline.reference)
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=r"own_network\.Mine, .* put into declouder\.networks\.REFERENCES first"):
        CloudRemovalPipeline.from_pretrained(tmp_path / "model")
    monkeypatch.setitem(REFERENCES, "mine", type(pipeline.reference))
    again = CloudRemovalPipeline.from_pretrained(tmp_path / "model")
    assert type(again.reference).__name__ == "Mine"


@pytest.mark.parametrize(
    ("name", "kind", "spacing"),
    [
        ("ddim", "DDIMScheduler", "leading"),
        ("ddim-trailing", "DDIMScheduler", "trailing"),
        ("dpmsolver++", "DPMSolverMultistepScheduler", "trailing"),
        ("unipc", "UniPCMultistepScheduler", "trailing"),
        ("euler", "EulerDiscreteScheduler", "trailing"),
    ],
)
def test_a_sampler_of_a_name_is_one_kind_on_the_papers_noise_schedule(name, kind, spacing):
    scheduler = make_scheduler(name)
    assert (type(scheduler).__name__, scheduler.config.timestep_spacing) == (kind, spacing)
    assert scheduler.config.get("algorithm_type", "dpmsolver++") == "dpmsolver++"
    assert not scheduler.config.get("clip_sample", False)
    np.testing.assert_array_equal(scheduler.alphas_cumprod, make_scheduler("ddim").alphas_cumprod)
    assert set(SAMPLERS) == {"ddim", "ddim-trailing", "dpmsolver++", "unipc", "euler"}


@pytest.mark.parametrize(
    ("gone", "mend"), [("model_index.json", "run the other stages"), ("reference/config.json", "copy")]
)
def test_what_a_folder_of_a_training_lacks_is_told(gone, mend, tmp_path):
    make_tiny().save_pretrained(tmp_path)
    (tmp_path / "training.json").write_text("{}", encoding="utf-8")
    (tmp_path / gone).unlink()
    with pytest.raises(ModelError, match=f"lacks {gone}; .*{mend}"):
        CloudRemovalPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", True),
        ("./name", False),
        ("/name", False),
        ("~/name", False),
        ("a/b/c", False),
        ("name", False),
    ],
)
def test_two_words_are_a_model_on_the_hub_unless_they_name_a_place(name, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert looks_like_hub_id(name) is expected
    (tmp_path / "owner").mkdir()
    assert not looks_like_hub_id("owner/name")


@pytest.mark.parametrize(
    ("fields", "told"), [({"num_inference_steps": -1}, "-1 steps"), ({"strength": 2.0}, "strength is 2")]
)
def test_a_pipeline_is_not_made_with_settings_that_it_cannot_have(fields, told):
    tiny = make_tiny()
    with pytest.raises(OptionError, match=told):
        CloudRemovalPipeline(tiny.reference, tiny.denoiser, tiny.weight_net, tiny.scheduler, **fields)
