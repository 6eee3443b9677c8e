"""MSDA-CR: its size, its range, any image size and number of bands. Its numbers: tests/test_authors.py."""

import pytest
import torch

from declouder.networks import padding
from declouder.networks.msda import MSDA


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def network() -> MSDA:
    torch.manual_seed(0)
    return MSDA().eval()


@pytest.mark.parametrize(("bands", "parameters"), [(3, 2_903_465), (4, 2_903_754)])
def test_msda_has_the_parameters_that_the_published_network_trains(bands: int, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in MSDA(bands).parameters()) == parameters


def test_every_parameter_of_msda_gets_a_gradient_from_its_supervised_output() -> None:
    network = MSDA()
    (output,) = network.supervised_outputs(images(1, 3, 16, 16))
    output.square().mean().backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (4, 1), (1, 9), (5, 4), (17, 30), (37, 24)])
@torch.no_grad()
def test_msda_takes_any_size_and_stays_in_range(network: MSDA, size: tuple[int, int]) -> None:
    cloudy = images(2, 3, *size)
    restored = network(cloudy)
    assert restored.shape == cloudy.shape
    assert torch.isfinite(restored).all()
    assert restored.min() >= -1 and restored.max() <= 1


@torch.no_grad()
def test_msda_pads_no_size_that_it_can_take_as_it_is(network: MSDA, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding.F, "pad", lambda *_: pytest.fail("an image was padded"))
    for size in [(5, 4), (6, 10), (17, 30), (32, 32)]:
        network(images(1, 3, *size))


@pytest.mark.parametrize("bands", [1, 4, 5])
@torch.no_grad()
def test_msda_runs_with_other_numbers_of_bands(bands: int) -> None:
    assert MSDA(bands)(images(1, bands, 16, 24)).shape == (1, bands, 16, 24)


@torch.no_grad()
def test_a_smaller_msda_can_be_configured() -> None:
    network = MSDA(height=2, width=5, dense_layers=2, growth=4, channels=8)
    assert network(images(1, 3, 20, 12)).shape == (1, 3, 20, 12)


@torch.no_grad()
def test_saved_and_loaded_msda_gives_the_same_image(network: MSDA, tmp_path) -> None:
    network.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").exists()
    loaded = MSDA.from_pretrained(tmp_path)
    cloudy = images(1, 3, 16, 16)
    assert torch.allclose(loaded(cloudy), network(cloudy), atol=1e-5)
