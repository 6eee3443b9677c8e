"""Attention in blocks is attention, and what its sums could not hold is left to PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from declouder.networks import attention as module
from declouder.networks.attention import attended


@pytest.fixture(autouse=True)
def _processor_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_avx512", lambda: True)


def images_of(pixels: int, *, heads: int = 3, channels: int = 16, batch: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(batch, pixels, heads, channels).transpose(1, 2) for _ in range(3)]


def expected(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.softmax(scale * q.double() @ k.double().transpose(2, 3), dim=3) @ v.double()


@pytest.mark.parametrize("pixels", [1, 63, 300])
@pytest.mark.parametrize(("keys", "products"), [(256, 2**18), (40, 1000), (7, 1)])
@torch.no_grad()
def test_attention_in_blocks_of_any_size(
    monkeypatch: pytest.MonkeyPatch, pixels: int, keys: int, products: int
) -> None:
    monkeypatch.setattr(module, "FEWEST_PIXELS", 1)
    monkeypatch.setattr(module, "KEYS_AT_ONCE", keys)
    monkeypatch.setattr(module, "PRODUCTS_AT_ONCE", products)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)  # not to be called
    q, k, v = images_of(pixels)
    before = [x.clone() for x in (q, k, v)]
    found = attended(q, k, v, 0.25)
    assert found.shape == v.shape and found.transpose(1, 2).is_contiguous()
    assert torch.allclose(found.double(), expected(q, k, v, 0.25), atol=1e-6)
    assert all(map(torch.equal, (q, k, v), before))


@pytest.mark.parametrize("factor", [1.0, 3.0, 40.0, 400.0])
@torch.no_grad()
def test_products_however_large(factor: float) -> None:
    q, k, v = images_of(module.FEWEST_PIXELS)
    found = attended(factor * q, k, v, 0.25)
    assert bool(found.isfinite().all())
    assert torch.allclose(found.double(), expected(factor * q, k, v, 0.25), atol=1e-3)


@torch.no_grad()
def test_the_bound_is_of_the_head_whose_products_are_largest() -> None:
    q, k, _ = images_of(100)
    q[0, 1], k[0, 1], q[1, 2], k[1, 2] = 0.0, 1e5, 3.0, 2.0
    found = module._largest_product(q, k, 0.5)
    assert found >= 0.5 * float((q @ k.transpose(2, 3)).abs().max())
    assert found < 50  # 16 channels of 3 times 2 are 96; the 1e5 belong to the keys of a head without queries
    assert module._largest_product(q, k, -0.5) == found


@torch.no_grad()
def test_without_avx512_all_goes_to_the_fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_avx512", lambda: False)
    monkeypatch.setattr(module, "_attend", None)  # not to be called
    q, k, v = images_of(module.FEWEST_PIXELS)
    found = attended(q, k, v, 0.25)
    assert found.transpose(1, 2).is_contiguous()
    assert torch.equal(found, F.scaled_dot_product_attention(q, k, v, scale=0.25))


@torch.no_grad()
def test_few_pixels_many_channels_other_numbers_and_no_numbers_go_to_the_fused_attention() -> None:
    few, wide = images_of(64), images_of(module.FEWEST_PIXELS, channels=module.MOST_CHANNELS + 1, batch=1)
    halves = [x.bfloat16() for x in images_of(module.FEWEST_PIXELS)]
    nothing = images_of(module.FEWEST_PIXELS)
    nothing[0][0, 0, 0, 0] = torch.nan
    for q, k, v in (few, wide, halves, nothing):
        found = attended(q, k, v, 0.25)
        assert found.transpose(1, 2).is_contiguous()
        assert torch.equal(found.isnan(), F.scaled_dot_product_attention(q, k, v, scale=0.25).isnan())
        assert torch.equal(found.nan_to_num(), F.scaled_dot_product_attention(q, k, v, scale=0.25).nan_to_num())
