"""MemoryNet: size, outputs, any image size and number of bands. Its numbers: tests/test_authors.py."""

import pytest
import torch
from safetensors.torch import load_file

from declouder.networks import padding
from declouder.networks.memorynet import MemoryNet


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def network() -> MemoryNet:
    torch.manual_seed(0)
    return MemoryNet().eval()


@pytest.mark.parametrize(("bands", "parameters"), [(3, 3_637_249), (4, 3_638_993)])
def test_memorynet_has_the_parameters_of_the_published_network(bands: int, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in MemoryNet(bands).parameters()) == parameters


@torch.no_grad()
def test_the_first_supervised_output_clamped_is_the_result(network: MemoryNet) -> None:
    cloudy = images(2, 3, 16, 24)
    outputs = network.supervised_outputs(cloudy)
    assert [output.shape for output in outputs] == [cloudy.shape] * 3
    assert torch.equal(network(cloudy), outputs[0].clamp(-1, 1))


@torch.no_grad()
def test_the_later_stages_see_across_the_cuts_between_the_parts(network: MemoryNet) -> None:
    cloudy = images(1, 3, 32, 32)
    changed = cloudy.clone()
    changed[..., 16:, 16:] = 0  # the lower right quarter
    upper_left_changes = [
        bool((one != other)[..., :8, :8].any())
        for one, other in zip(network.supervised_outputs(cloudy), network.supervised_outputs(changed), strict=True)
    ]
    # Stage 1 decodes the halves apart, so its upper half knows nothing of the lower one.
    assert upper_left_changes == [True, True, False]


def test_every_parameter_of_memorynet_gets_a_gradient_from_its_supervised_outputs() -> None:
    network = MemoryNet()
    torch.stack(network.supervised_outputs(images(1, 3, 16, 16))).square().mean().backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("size", [(1, 1), (7, 8), (5, 20), (17, 30), (60, 66)])
@torch.no_grad()
def test_memorynet_takes_any_size_and_stays_in_range(network: MemoryNet, size: tuple[int, int]) -> None:
    cloudy = images(2, 3, *size)
    restored = network(cloudy)
    assert restored.shape == cloudy.shape
    assert torch.isfinite(restored).all()
    assert restored.min() >= -1 and restored.max() <= 1


@torch.no_grad()
def test_memorynet_pads_no_size_that_it_can_take_as_it_is(
    network: MemoryNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(padding.F, "pad", lambda *_: pytest.fail("an image was padded"))
    for size in [(8, 8), (24, 16)]:
        network(images(1, 3, *size))


@pytest.mark.parametrize("bands", [1, 4, 5])
@torch.no_grad()
def test_memorynet_runs_with_other_numbers_of_bands(bands: int) -> None:
    assert MemoryNet(bands)(images(1, bands, 16, 24)).shape == (1, bands, 16, 24)


@torch.no_grad()
def test_saved_and_loaded_memorynet_gives_the_same_image_and_has_its_slope_once(
    network: MemoryNet, tmp_path
) -> None:
    network.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == 3_637_249
    assert [name for name, tensor in saved.items() if tensor.numel() == 1] == ["slope"]
    cloudy = images(1, 3, 16, 16)
    assert torch.allclose(MemoryNet.from_pretrained(tmp_path)(cloudy), network(cloudy), atol=1e-5)
