"""Attention over the pixels of an image, block by block, for CPUs: softmax(scale * q k^T) v.

PyTorch's fused attention looks for each row's largest product before it takes exponentials, so that none
overflows. Where lengths of queries and keys say that no product is large, exponentials are taken as they are:
a pass less over all products, and no sum to be mended from block to block. That is quicker with AVX-512; without,
exponentials take longer here than there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from declouder.devices import has_avx512

LARGEST_PRODUCT = 60.0
"""Between exp(-60) and exp(60), 1e26, float32 is as exact as elsewhere, in sums too."""
MOST_CHANNELS = 64
"""Of a head; beyond, the fused attention is as quick: the products weigh more and the exponentials less."""
FEWEST_PIXELS = 2048
"""Below, the same."""
KEYS_AT_ONCE, PRODUCTS_AT_ONCE = 256, 2**18
"""Of products so many for a thread, which stay in a core's cache between the parts of the computation."""


def attended(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return softmax(scale * q k^T) v, (B, heads, N, D), of q, k and v of that shape.

    In the result pixels follow one another in memory, all heads of one together: (B, N, heads, D) is contiguous.
    Numbers of v beyond 1e10, which no normalised image gives, may overflow.
    """
    _, _, pixels, channels = q.shape
    if (
        not has_avx512()
        or q.dtype != torch.float32
        or channels > MOST_CHANNELS
        or pixels < FEWEST_PIXELS
        or not _largest_product(q, k, scale) <= LARGEST_PRODUCT  # NaN is none
    ):
        fused = F.scaled_dot_product_attention(q, k, v, scale=scale)
        return fused.transpose(1, 2).contiguous().transpose(1, 2)
    out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format)
    for image in zip(q * scale, k, v, out, strict=True):
        _attend(*image)
    return out.transpose(1, 2)


def _largest_product(q: Tensor, k: Tensor, scale: float) -> float:
    """Return a bound of what any query and key give: the product of the greatest lengths, of the worst head."""
    longest_q, longest_k = (torch.linalg.vector_norm(x, dim=3).amax(2) for x in (q, k))
    return float((longest_q * longest_k).max()) * abs(scale)


def _attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Write exp(q k^T) v, divided by the sums of exp(q k^T), into out (N, heads, D); the others (heads, N, D)."""
    heads, pixels, channels = q.shape
    # One more channel of ones gives the sums together with the rest.
    values = torch.cat([v, v.new_ones(heads, pixels, 1)], dim=2)
    keys_at_once = min(pixels, KEYS_AT_ONCE)
    queries_at_once = max(1, PRODUCTS_AT_ONCE * torch.get_num_threads() // (heads * keys_at_once))
    # Contiguous blocks, as products of slices with long rows are slower.
    key_blocks = [block.contiguous() for block in torch.split(k, keys_at_once, dim=1)]
    value_blocks = [block.transpose(1, 2).contiguous() for block in torch.split(values, keys_at_once, dim=1)]
    memory = q.new_empty(heads * keys_at_once * queries_at_once)
    for queries, place in zip(
        torch.split(q, queries_at_once, dim=1), torch.split(out, queries_at_once), strict=True
    ):
        queries = queries.transpose(1, 2).contiguous()  # (heads, D, queries)
        found = q.new_zeros(heads, channels + 1, queries.shape[2])
        for keys, of_keys in zip(key_blocks, value_blocks, strict=True):
            shape = heads, keys.shape[1], queries.shape[2]
            products = memory[: shape[0] * shape[1] * shape[2]].view(shape)
            torch.bmm(keys, queries, out=products)
            found.baddbmm_(of_keys, products.exp_())
        torch.div(found[:, :-1], found[:, -1:], out=place.permute(1, 2, 0))
