"""The scores: equal to scikit-image, true to the paper's evaluator, and silent where they cannot be had."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from declouder import metrics
from declouder.data.catalog import set_pairs
from declouder.data.images import read_image
from declouder.errors import DataError, OptionError


def pair(bands: int = 3, size: int = 48, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A smooth image and a noisier, brighter one."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, : size + 5] / size
    clear = np.stack([120 + 90 * np.sin(5 * rows + 3 * columns * (c + 1)) for c in range(bands)], -1)
    restored = clear * 0.8 + 30 + rng.normal(0, 8, clear.shape)
    return restored.clip(0, 255).astype(np.uint8), clear.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("bands", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_psnr_and_ssim_equal_scikit_image(bands: int, dtype: type[np.generic]) -> None:
    span = {np.uint8: 255.0, np.uint16: 65535.0, np.float64: 1.0}[dtype]
    restored, clear = ((image * (span / 255)).astype(dtype) for image in pair(bands))
    assert metrics.psnr(restored, clear) == pytest.approx(
        peak_signal_noise_ratio(clear, restored, data_range=span), abs=1e-6
    )
    gaussian = structural_similarity(
        clear,
        restored,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=span,
    )
    assert metrics.ssim(restored, clear) == pytest.approx(gaussian, abs=1e-6)


def test_paper_scores_equal_the_evaluators_recipe_on_scikit_image() -> None:
    restored, clear = pair()
    levels = [
        ((torch.from_numpy(image) / 127.5 - 1 + 1) * 127.5).clamp(0, 255).to(torch.uint8).numpy()
        for image in (restored, clear)
    ]
    assert metrics.paper_psnr(restored, clear) == pytest.approx(
        peak_signal_noise_ratio(levels[1], levels[0], data_range=255), abs=1e-6
    )
    luma = [np.dot(image, [0.298912, 0.586611, 0.114478]) for image in levels]
    assert metrics.paper_ssim(restored, clear) == pytest.approx(
        structural_similarity(luma[1], luma[0], data_range=255), abs=1e-6
    )


def test_paper_levels_cut_63_of_256_grey_levels_one_lower() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    lower = grey.astype(int) - metrics.paper_levels(grey, 255)
    assert sorted(set(lower.ravel())) == [0, 1]
    assert lower.sum() == 63


def test_paper_ssim_of_four_bands_is_the_mean_over_grey_triples() -> None:
    restored, clear = pair(4)
    triples = [np.repeat(image[..., c : c + 1], 3, 2) for c in range(4) for image in (restored, clear)]
    single = [metrics.paper_ssim(triples[i], triples[i + 1]) for i in range(0, 8, 2)]
    assert metrics.paper_ssim(restored, clear) == pytest.approx(np.mean(single), abs=1e-9)


def test_paper_levels_of_numbers_beyond_the_range_are_its_ends() -> None:
    beyond = np.array([-3.0, -0.1, 1.1, 3.0]).reshape(2, 2, 1)
    assert metrics.paper_levels(beyond, 1.0).ravel().tolist() == [0, 0, 255, 255]


def test_paper_lpips_of_four_bands_is_the_mean_over_grey_triples(backbone: Path) -> None:
    network, _ = metrics.load_lpips(backbone)
    assert network is not None
    restored, clear = pair(4)
    bands = [metrics.paper_lpips(restored[..., c : c + 1], clear[..., c : c + 1], network) for c in range(4)]
    assert metrics.paper_lpips(restored, clear, network) == pytest.approx(np.mean(bands), abs=1e-5)
    assert np.ptp(bands) > 5e-4


def test_the_map_of_similarity_is_the_mean_of_the_maps_of_the_bands() -> None:
    restored, clear = pair()
    maps = [metrics.score(restored[..., c : c + 1], clear[..., c : c + 1], lpips=None).ssim_map for c in range(3)]
    found = metrics.score(restored, clear, lpips=None).ssim_map
    assert found.shape == tuple(side - 2 * metrics.SSIM_BORDER_PX for side in clear.shape[:2])
    np.testing.assert_allclose(found, np.mean(maps, 0), atol=1e-12)


def test_lpips_wants_31_px(backbone: Path) -> None:
    network, _ = metrics.load_lpips(backbone)
    assert network is not None
    for side, known in ((31, True), (30, False)):
        restored, clear = (image[:side] for image in pair())
        found = metrics.score(restored, clear, lpips=network).overall
        assert (found["lpips"] is not None, found["paper_lpips"] is not None) == (known, known)
    for score in (metrics.lpips, metrics.paper_lpips):
        with pytest.raises(DataError, match="31 px or more"):
            score(restored, clear, network)


def test_equal_images_have_the_best_scores(backbone: Path) -> None:
    _, clear = pair()
    network, _ = metrics.load_lpips(backbone)
    scores = metrics.score(clear, clear, lpips=network).overall
    assert scores["psnr"] == math.inf
    assert scores["ssim"] == pytest.approx(1)
    assert (scores["mae"], scores["sam"], scores["lpips"], scores["paper_lpips"]) == (0, 0, 0, 0)


def test_spectral_angle_is_that_between_the_spectra_and_blind_to_brightness() -> None:
    one = np.zeros((4, 4, 2))
    one[..., 0] = 1
    other = one.copy()
    other[..., 1] = math.tan(math.radians(30))
    assert metrics.sam(one, other) == pytest.approx(30)
    assert metrics.sam(one, one * 0.25) == pytest.approx(0, abs=1e-9)
    other[0, 0] = 0  # a pixel without spectrum has no angle
    assert metrics.sam(one, other) == pytest.approx(30)
    assert metrics.sam(other, one) == pytest.approx(30)
    assert metrics.sam(one[..., :1], other[..., :1]) is None


def test_mae_is_a_share_of_the_range() -> None:
    clear = np.zeros((4, 4, 1), np.uint8)
    assert metrics.mae(clear + 51, clear) == pytest.approx(0.2)


def test_score_gives_what_the_single_functions_give(backbone: Path) -> None:
    network, where = metrics.load_lpips(backbone)
    assert network is not None
    assert str(backbone) in where
    for bands in (3, 4):
        restored, clear = pair(bands)
        both = metrics.score(restored, clear, lpips=network)
        scores = both.overall
        assert len(both.bands) == bands
        assert both.bands[-1]["psnr"] == metrics.psnr(restored[..., -1:], clear[..., -1:])
        assert np.mean([band["ssim"] for band in both.bands]) == pytest.approx(scores["ssim"])
        assert set(scores) == set(metrics.DEFINITIONS)
        for name in ("psnr", "ssim", "mae", "sam", "paper_psnr", "paper_ssim"):
            assert scores[name] == pytest.approx(getattr(metrics, name)(restored, clear), abs=1e-12)
        assert scores["lpips"] == pytest.approx(metrics.lpips(restored, clear, network), abs=1e-5)
        assert scores["paper_lpips"] == pytest.approx(metrics.paper_lpips(restored, clear, network), abs=1e-5)


@pytest.mark.parametrize("bands", [3, 4])
def test_lpips_of_a_band_is_that_of_its_grey_image_and_only_where_asked(backbone: Path, bands: int) -> None:
    network, _ = metrics.load_lpips(backbone)
    assert network is not None
    restored, clear = pair(bands)
    plain = metrics.score(restored, clear, lpips=network)
    asked = metrics.score(restored, clear, lpips=network, band_lpips=True)
    assert [band["lpips"] for band in plain.bands] == [None] * bands
    for name, value in plain.overall.items():
        assert asked.overall[name] == pytest.approx(value, abs=1e-5)
    grey = [np.repeat(image[..., 1:2], 3, 2) for image in (restored, clear)]
    assert asked.bands[1]["lpips"] == pytest.approx(metrics.lpips(*grey, network), abs=1e-5)


def test_lpips_equals_torchmetrics_on_the_same_backbone(backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.functional.image import lpips as theirs

    network, _ = metrics.load_lpips(backbone)
    assert network is not None
    restored, clear = pair(size=80)
    state = torch.load(backbone, weights_only=True)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 11, 4, 2),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(3, 2),
        torch.nn.Conv2d(64, 192, 5, 1, 2),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(3, 2),
        torch.nn.Conv2d(192, 384, 3, 1, 1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(384, 256, 3, 1, 1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(256, 256, 3, 1, 1),
        torch.nn.ReLU(),
    )
    layers.load_state_dict({name.removeprefix("features."): value for name, value in state.items()})
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_, **__: layers)
    reference = theirs._LPIPS(net="alex")
    tensors = [
        torch.from_numpy(image.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None] for image in (restored, clear)
    ]
    assert metrics.lpips(restored, clear, network) == pytest.approx(float(reference(*tensors)), rel=1e-4)


def test_band_names_say_where_red_green_and_blue_are(backbone: Path) -> None:
    network, _ = metrics.load_lpips(backbone)
    assert network is not None
    restored, clear = pair(4)
    rgb = metrics.lpips(restored[..., :3], clear[..., :3], network)
    names = ("nir", "blue", "green", "red")
    swapped = metrics.lpips(restored[..., ::-1], clear[..., ::-1], network, band_names=names)
    assert swapped == pytest.approx(rgb, abs=1e-6)


def test_without_a_backbone_lpips_is_none_with_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(metrics.BACKBONE_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network, reason = metrics.load_lpips()
    assert network is None
    assert "--lpips-backbone" in reason
    restored, clear = pair()
    scores = metrics.score(restored, clear, lpips=network).overall
    assert scores["lpips"] is None
    assert scores["paper_lpips"] is None


def test_the_backbone_is_found_by_environment_variable(monkeypatch: pytest.MonkeyPatch, backbone: Path) -> None:
    monkeypatch.setenv(metrics.BACKBONE_VARIABLE, str(backbone))
    network, where = metrics.load_lpips()
    assert network is not None
    assert metrics.BACKBONE_VARIABLE in where


def test_a_variable_that_names_no_file_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(metrics.BACKBONE_VARIABLE, str(tmp_path / "none.pth"))
    with pytest.raises(OptionError, match="does not exist"):
        metrics.load_lpips()


def test_a_download_is_checked_by_the_hash_in_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backbone: Path
) -> None:
    monkeypatch.delenv(metrics.BACKBONE_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked: list[str] = []

    def fetched(_url: str, place: str, hash_prefix: str, **_: object) -> None:
        asked.append(hash_prefix)
        Path(place).write_bytes(backbone.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetched)
    network, where = metrics.load_lpips(download=True)
    assert network is not None and Path(where).is_relative_to(tmp_path)
    assert asked == ["7be5be79"]
    metrics.load_lpips(download=True)
    assert len(asked) == 1, "what is there is not fetched again"


def test_a_wrong_backbone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="does not exist"):
        metrics.load_lpips(tmp_path / "none.pth")
    wrong = tmp_path / "wrong.pth"
    torch.save({"weight": torch.zeros(2)}, wrong)
    with pytest.raises(OptionError, match="not torchvision's AlexNet"):
        metrics.load_lpips(wrong)


def test_images_that_cannot_be_compared_are_errors() -> None:
    restored, clear = pair()
    with pytest.raises(DataError, match="one shape"):
        metrics.psnr(restored[:-1], clear)
    with pytest.raises(DataError, match="uint16"):
        metrics.psnr(restored.astype(np.uint16), clear)
    with pytest.raises(DataError, match="too small"):
        metrics.ssim(restored[:8], clear[:8])
    for span in (0, -255, math.inf, math.nan):
        with pytest.raises(OptionError, match=f"data range {span:g} is no number above 0"):
            metrics.psnr(restored, clear, data_range=span)
        with pytest.raises(OptionError, match="above 0"):
            metrics.score(restored, clear, lpips=None, data_range=span)
    with pytest.raises(OptionError, match="2 band names for 3 bands; give one a band"):
        metrics.score(restored, clear, lpips=None, band_names=("red", "green"))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("RICE1", [19.4589, 0.7983, 0.1677, 19.3991, 0.8046, 0.0888]),
        ("RICE2", [20.6003, 0.7511, 0.4636, 20.5521, 0.7317, 0.1609]),
    ],
)
def test_the_cloudy_images_of_rice_have_the_scores_that_others_measured(name: str, wanted: list[float]) -> None:
    """The sample of RICE that the benchmark uses: 22 and 32 test pairs at 256 px."""
    data = os.environ.get("DECLOUDER_TEST_DATA")
    if not data or not (Path(data) / name / "test").is_dir():
        pytest.skip(f"set DECLOUDER_TEST_DATA to the folder that holds {name}/test/{{cloud,label}}")
    network, reason = metrics.load_lpips()
    if network is None:
        pytest.skip(reason)
    rows = [
        metrics.score(read_image(p.cloudy_path), read_image(p.clear_path), lpips=network).overall
        for p in set_pairs(Path(data) / name, "test")
    ]
    names = ("psnr", "ssim", "lpips", "paper_psnr", "paper_ssim", "paper_lpips")
    means = [float(np.mean([row[score] or math.nan for row in rows])) for score in names]
    assert np.round(means, 4).tolist() == wanted


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_image_with_pixels_that_are_no_numbers_has_no_scores(bad):
    clear = np.full((32, 32, 3), 0.5, np.float32)
    restored = clear.copy()
    restored[3, 4, 1] = bad
    for score in (metrics.psnr, metrics.ssim, metrics.sam, metrics.paper_psnr, metrics.paper_ssim):
        with pytest.raises(DataError, match="the restored image holds NaN or infinite values"):
            score(restored, clear)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_clear_image_with_pixels_that_are_no_numbers_gives_no_scores(bad):
    restored = np.full((32, 32, 3), 0.5, np.float32)
    clear = restored.copy()
    clear[3, 4, 1] = bad
    for score in (metrics.psnr, metrics.ssim, metrics.sam, metrics.mae, metrics.paper_psnr, metrics.paper_ssim):
        with pytest.raises(DataError, match="the clear image holds NaN or infinite values"):
            score(restored, clear)


def test_three_bands_that_are_no_colours_are_compared_band_by_band(backbone):
    network, _ = metrics.load_lpips(backbone)
    rng = np.random.default_rng(0)
    restored, clear = rng.integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    found = metrics.lpips(restored, clear, network, band_names=("nir", "red", "green"))
    bands = [metrics.lpips(restored[..., c : c + 1], clear[..., c : c + 1], network) for c in range(3)]
    assert found == pytest.approx(np.mean(bands), abs=1e-6)
    assert abs(found - metrics.lpips(restored, clear, network)) > 1e-4


def test_what_no_metric_can_be_taken_of_is_told():
    with pytest.raises(DataError, match="no pixel"):
        metrics.mae(np.zeros((0, 5, 3)), np.zeros((0, 5, 3)))
    with pytest.raises(OptionError, match="range"):
        metrics.mae(np.ones((5, 5, 1)), np.ones((5, 5, 1)), data_range=math.nan)


def test_spectra_of_opposite_sign_are_half_a_turn_apart(rng):
    x = rng.random((50, 50, 3)) + 0.1
    assert metrics.sam(-x, x) == pytest.approx(180, abs=1e-4)  # rounding goes beyond what a sine can be


def test_lpips_of_images_too_narrow_in_either_direction_is_none_and_names_must_fit(backbone, rng):
    network, _ = metrics.load_lpips(backbone)
    x = rng.integers(0, 256, (40, 20, 3), dtype=np.uint8)
    for image in (x, x.transpose(1, 0, 2)):
        assert metrics.score(image, image, lpips=network).overall["lpips"] is None
    wide = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    with pytest.raises(OptionError, match="2 band names"):
        metrics.lpips(wide, wide, network, band_names=("a", "b"))


def test_the_papers_lpips_takes_the_first_three_bands_whatever_they_are_called(backbone, rng):
    network, _ = metrics.load_lpips(backbone)
    a, b = (rng.integers(0, 256, (40, 40, 4), dtype=np.uint8) for _ in range(2))
    found = metrics.score(a, b, lpips=network, band_names=("nir", "blue", "green", "red"))
    assert found.overall["paper_lpips"] == pytest.approx(metrics.paper_lpips(a, b, network))
