"""Cloud shadows, found by the clouds that cast them and given the light of the ground around.

A network tells a shadow from dark ground only where it knows the ground. But all clouds of an image throw theirs
the same way, about as far: where dark ground repeats the clouds' shapes, moved by one offset, it is their shadow
(the geometry by which Fmask matches clouds and shadows: Zhu and Woodcock, "Object-based cloud and cloud shadow
detection in Landsat imagery", Remote Sensing of Environment 2012, which knows the sun; here the offset is found):

    offset    where the correlation of clouds, moved, and of how dark the ground outside of them is, has its peak;
              nothing is done unless the peak is high, stands out of the other offsets, and is not at their border
    shadow    a, in [0, 1]: how dark a pixel is beside lit ground around, as a share of how dark shadows are, near
              the moved clouds; its edges are those of the image (a guided filter: He et al., "Guided image
              filtering", IEEE TPAMI 2013)
    restored /= 1 - lost a      lost: the share of the light that is missing in the shadows' cores, in each band

Nothing here is learnt. Of images in which no offset stands out nothing changes, not a bit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from declouder.networks.squares import box_mean, ramp, smoothly_enlarged

CELL_PX = 4
"""The offset is looked for among cells of so many pixels."""
LEAST_PX = 96
"""Images with a smaller side stay as they are: they show too few clouds with their shadows."""
FARTHEST_CELLS = 64
"""Offsets go so far in each direction, or a third of the image's smaller side."""
REMOVED = 0.1
"""By how much the network has darkened what counts as cloud, in the darkest band, in images from 0 to 1."""
BRIGHT = 0.6
"""What is brighter in all bands counts as cloud too: it may be one that was left."""
LEAST_PEAK = 0.3
"""Correlation at the offset."""
STANDS_OUT = 0.11
"""By how much the peak is above what 99 % of the offsets stay below."""
COMMON = 0.25
"""Share of the ground outside of clouds that an offset must leave within the image."""
DARKEST = 0.6
"""Darker than by this share is no shadow alone; it counts as no more."""
CLOUD_REACH_PX = 9
NEAR_CELLS = 15
"""Side of the square, in cells, that says how bright ground around is, as the offset is looked for."""
GROWN_PX = 21
"""Moved clouds grow by half of it to hold their shadows: clouds have a height, and slopes bend the way."""
LIT_CELLS = (15, 51)
"""Sides of the squares, taken twice, that say how bright lit ground around is: the narrow one as far as it can."""
LEAST_LIT = 0.02
"""Share of lit ground around that weighs as much as what the wide square says."""
KNOWN = (0.02, 0.06)
"""Share of lit ground in the wide square from where on it tells how bright that is, in part, and surely."""
DARK = 0.1
"""Ground under moved clouds that is darker by this share says how dark shadows are."""
DEPTHS = (0.1, 0.7)
"""Shares of the light that a shadow may lack."""
GUIDE_PX, FLAT = 9, 2e-4
"""Side of the guided filter's square, and its regularization, a variance in images from 0 to 1."""
SHADOW = (0.15, 0.85)
"""Of the shadows' depth: from where on a pixel is shadow in part, and wholly."""
CORE = 0.9
RING_PX = 31
"""What lies so near a core, and is lit, says what its light would be."""
FEWEST_PX = 50
"""Of shadow, of its cores and of lit ground beside them."""


def relit(cloudy: Tensor, restored: Tensor) -> Tensor:
    """Return restored images whose cloud shadows have the light of the ground around.

    Args:
        cloudy: (B, C, H, W) in [-1, 1].
        restored: what a network makes of it, of that shape and range.

    Returns:
        (B, C, H, W) in [-1, 1]; images in which no shadows are found are those of `restored`.
    """
    if min(cloudy.shape[-2:]) < LEAST_PX:
        return restored
    result = restored
    with torch.autocast(cloudy.device.type, enabled=False):
        for index in range(len(cloudy)):
            seen, image = ((x[index : index + 1].float() + 1) / 2 for x in (cloudy, restored))
            cloud = _cloud(seen, image)
            offset = _offset(cloud, image)
            light = None if offset is None else _missing_light(image, cloud, _moved(cloud, offset))
            if light is None:
                continue
            result = restored.clone() if result is restored else result
            result[index] = (2 * (image * light).clamp(0, 1) - 1)[0].to(restored.dtype)
    return result


def _cloud(seen: Tensor, image: Tensor) -> Tensor:
    """Return 1 where there is cloud that was removed, or may have been left: (1, 1, H, W)."""
    darkest = seen.amin(dim=1, keepdim=True)
    removed = darkest - image.amin(dim=1, keepdim=True) > REMOVED
    return (removed | (darkest > BRIGHT)).float()


def _offset(cloud: Tensor, image: Tensor) -> tuple[int, int] | None:
    """Return by how many pixels, down and right, shadows lie from their clouds; None where nothing tells."""
    cells = F.avg_pool2d(cloud, CELL_PX)
    if not 0 < float(cells.mean()) < 1:
        return None
    light = F.avg_pool2d(image.mean(dim=1, keepdim=True), CELL_PX)
    free = 1 - (2 * box_mean(cells, CLOUD_REACH_PX // CELL_PX | 1)).clamp(max=1)
    around = box_mean(light * free, NEAR_CELLS) / box_mean(free, NEAR_CELLS).clamp_min(0.02)
    dark = free * (1 - light / around.clamp_min(1e-3)).clamp(0, DARKEST)
    reach = min(FARTHEST_CELLS, min(cells.shape[-2:]) // 3)
    correlation = _correlation(cells[0, 0], dark[0, 0], free[0, 0], reach)
    peak, place = correlation.flatten().max(dim=0)
    usual = torch.quantile(correlation.flatten(), 0.99)
    down, right = (int(n) - reach for n in divmod(int(place), 2 * reach + 1))
    if float(peak) < LEAST_PEAK or float(peak - usual) < STANDS_OUT or max(abs(down), abs(right)) == reach:
        return None
    return CELL_PX * down, CELL_PX * right


def _correlation(clouds: Tensor, dark: Tensor, free: Tensor, reach: int) -> Tensor:
    """Return the correlation of clouds, moved by each offset, and darkness, over free ground.

    Args:
        clouds: (h, w), the share of each cell that is cloud.
        dark: (h, w), 0 where no ground is free.
        free: (h, w) in [0, 1].
        reach: offsets go from -reach to reach.

    Returns:
        (2 reach + 1, 2 reach + 1); -1 where too little ground is left to say.
    """
    size = [length + reach for length in clouds.shape]  # beyond the image is nothing, so that nothing comes round

    def spectrum(x: Tensor) -> Tensor:
        found: Tensor = torch.fft.rfft2(x, s=size)
        return found

    def sums(moved: Tensor, still: Tensor) -> Tensor:
        """Return, for each offset, the sum of products of one map, moved, and another."""
        products: Tensor = torch.fft.irfft2(moved.conj() * still, s=size)
        return products.roll((reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]

    all_cells, cloud = spectrum(torch.ones_like(clouds)), spectrum(clouds)
    weight, weighted = spectrum(free), spectrum(free * dark)
    count = sums(all_cells, weight).clamp_min(1)
    mean_cloud, mean_dark = sums(cloud, weight) / count, sums(all_cells, weighted) / count
    of_cloud = sums(spectrum(clouds.square()), weight) / count - mean_cloud.square()
    of_dark = sums(all_cells, spectrum(free * dark.square())) / count - mean_dark.square()
    common = sums(cloud, weighted) / count - mean_cloud * mean_dark
    found = common / (of_cloud.clamp_min(1e-4) * of_dark.clamp_min(1e-6)).sqrt()
    return torch.where(count < COMMON * float(free.sum()), -1.0, found)


def _moved(cloud: Tensor, offset: tuple[int, int]) -> Tensor:
    """Return clouds moved by an offset, down and right; nothing comes in from outside the image."""
    height, width = cloud.shape[-2:]
    down, right = offset
    wide = F.pad(cloud, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)))
    top, left = max(-down, 0), max(-right, 0)
    return wide[..., top : top + height, left : left + width]


def _missing_light(image: Tensor, cloud: Tensor, moved: Tensor) -> Tensor | None:
    """Return what each band is to be multiplied by, (1, C, H, W), 1 outside of shadows; None if there are none."""
    near = box_mean(_grown(moved, GROWN_PX), CLOUD_REACH_PX)
    covered = box_mean(_grown(cloud, 5), 5)
    light = image.mean(dim=1, keepdim=True)
    is_lit = (1 - near - covered).clamp_min(0) + 1e-3
    around, known = _lit_around(light, is_lit)
    darker = known * (1 - box_mean(light, 3) / around)
    deep = darker[(moved > 0) & (darker > DARK) & (covered < 0.5)]
    if len(deep) < FEWEST_PX:
        return None
    low, high = DEPTHS
    # What flowed in under a cloud may have come from a shadow.
    here = torch.maximum(near, covered)
    depth = deep[:: len(deep) // 100_000 + 1].quantile(0.6).clamp(low, high)
    shadow = _guided((darker / depth).clamp(0, 1.1) * here, light)
    begin, end = SHADOW
    shadow = ((shadow - begin) / (end - begin)).clamp(0, 1) * here
    core = (shadow > CORE) & (moved > 0)
    lit = (_grown(core.float(), RING_PX) > 0) & (near < 0.1) & (covered < 0.05)
    if min(int(core.sum()), int(lit.sum())) < FEWEST_PX:
        return None
    lost = torch.stack([1 - band[core[0, 0]].mean() / band[lit[0, 0]].mean().clamp_min(1e-3) for band in image[0]])
    lost = lost.clamp(0, DEPTHS[1])
    # Colours that flowed in are a shadow's in part only: they get no brighter than the ground around.
    at_most = (box_mean(darker.clamp_min(0), GUIDE_PX) / lost.mean().clamp_min(1e-3)).clamp(max=1)
    shadow = torch.lerp(shadow, torch.minimum(shadow, at_most), covered)
    return 1 / (1 - lost[:, None, None] * shadow)


def _grown(x: Tensor, side: int) -> Tensor:
    """Return the greatest value in the square around every pixel."""
    x = F.max_pool2d(x, (side, 1), stride=1, padding=(side // 2, 0))
    return F.max_pool2d(x, (1, side), stride=1, padding=(0, side // 2))


def _lit_around(light: Tensor, is_lit: Tensor) -> tuple[Tensor, Tensor]:
    """Return how bright lit ground around is, and how surely that is known, in [0, 1]; all (1, 1, H, W)."""
    height, width = light.shape[-2:]
    both = F.avg_pool2d(
        torch.cat([light * is_lit, is_lit], dim=1), CELL_PX, ceil_mode=True, count_include_pad=False
    )
    narrow, wide = (box_mean(box_mean(both, side), side) for side in LIT_CELLS)
    from_wide = wide[:, :1] / wide[:, 1:]
    around = (narrow[:, :1] + LEAST_LIT * from_wide) / (narrow[:, 1:] + LEAST_LIT)
    told = smoothly_enlarged(torch.cat([around, ramp(wide[:, 1:], KNOWN)], dim=1), CELL_PX)[..., :height, :width]
    return told[:, :1].clamp_min(1e-3), told[:, 1:]


def _guided(x: Tensor, guide: Tensor) -> Tensor:
    """Return a map, smoothed but for the edges that a guide has too."""
    mean_guide, mean_x = box_mean(guide, GUIDE_PX), box_mean(x, GUIDE_PX)
    covariance = box_mean(guide * x, GUIDE_PX) - mean_guide * mean_x
    a = covariance / (box_mean(guide * guide, GUIDE_PX) - mean_guide.square() + FLAT)
    return box_mean(a, GUIDE_PX) * guide + box_mean(mean_x - a * mean_guide, GUIDE_PX)
