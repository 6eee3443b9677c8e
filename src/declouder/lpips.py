"""The perceptual distance LPIPS (Zhang et al. 2018), AlexNet, version 0.1.

    d = sum_l mean_hw sum_c v_lc (f_lc(a) - f_lc(b))^2

f_l are AlexNet's features after each of its five ReLUs, brought to length 1 over the channels c, and v_l the
published weights, which ship with torchmetrics. AlexNet's own weights are found by `load_lpips`. On the same
weights the distance is torchmetrics' within 1e-4 of it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from declouder.errors import OptionError, reason_of

if TYPE_CHECKING:
    from torch import Tensor

    from declouder.winograd import WinogradConvolution

BACKBONE_VARIABLE = "DECLOUDER_LPIPS_BACKBONE"
BACKBONE_FILE = "alexnet-owt-7be5be79.pth"
BACKBONE_URL = f"https://download.pytorch.org/models/{BACKBONE_FILE}"
CONVOLUTIONS = {0: (4, 2, False), 3: (1, 2, True), 6: (1, 1, True), 8: (1, 1, False), 10: (1, 1, False)}
"""AlexNet's, by their number in `features`: stride, padding, and whether 3 x 3 maxima of every second pixel come
first."""
MEAN = np.array([-0.030, -0.088, -0.188], np.float32)
"""What the network takes off red, green and blue in [-1, 1]."""
DEVIATION = np.array([0.458, 0.448, 0.450], np.float32)
"""What it then divides them by."""


def load_lpips(backbone: Path | None = None, *, download: bool = False) -> tuple[Lpips | None, str]:
    """Return LPIPS and where its backbone came from, or None and the reason why there is none.

    The backbone is the state of torchvision's AlexNet (of which the keys `features.*` are used), looked for at
    `backbone`, else where the environment variable DECLOUDER_LPIPS_BACKBONE points, else in torch hub's cache.
    Nothing is downloaded unless `download` is set; the download's hash is checked.

    Raises:
        OptionError: if the path or variable is given and no AlexNet lies there.
    """
    import torch

    named = os.environ.get(BACKBONE_VARIABLE)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE_FILE
    if backbone is not None:
        return Lpips.from_files(backbone), str(backbone)
    if named:
        return Lpips.from_files(Path(named)), f"{named} ({BACKBONE_VARIABLE})"
    if download and not cached.is_absolute():  # "~" where there is no home
        return None, "there is no home folder to keep the LPIPS backbone in; set TORCH_HOME"
    if download and not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(BACKBONE_URL, str(cached), BACKBONE_FILE[-12:-4], progress=False)
        except (OSError, RuntimeError) as error:
            return (
                None,
                f"the LPIPS backbone could not be downloaded ({error}); give it with --lpips-backbone",
            )
    if cached.is_file():
        return Lpips.from_files(cached), str(cached)
    return None, (
        f"it wants torchvision's AlexNet weights ({BACKBONE_FILE}); fetch them with --lpips-download, or name them"
        f" with --lpips-backbone or {BACKBONE_VARIABLE}"
    )


@dataclass(frozen=True)
class Lpips:
    """The distance, ready to compare images.

    Attributes:
        first: (weight, bias) of the first convolution, 11 x 11 with stride 4.
        others: the four convolutions of stride 1.
        linear: v_l, five tensors (C_l,).
        backbone_sha256: of the backbone's file.
        weights: (weight, bias) of all five convolutions, for whoever wants the gradient.
    """

    first: tuple[Tensor, Tensor]
    others: Sequence[WinogradConvolution]
    linear: Sequence[Tensor]
    backbone_sha256: str
    weights: Sequence[tuple[Tensor, Tensor]]

    @classmethod
    def from_files(cls, backbone: Path) -> Lpips:
        """Load AlexNet from `backbone` and the published linear weights, which ship with torchmetrics.

        Raises:
            OptionError: if the file is missing or is no AlexNet.
        """
        import torch

        from declouder.winograd import WinogradConvolution

        if not backbone.is_file():
            raise OptionError(
                f"LPIPS backbone {backbone} does not exist; give torchvision's AlexNet ({BACKBONE_FILE})"
            )
        try:
            # The file is read as tensors only; nothing in it is executed.
            found = torch.load(backbone, map_location="cpu", weights_only=True)
            weights = [
                (found[f"features.{layer}.weight"].float(), found[f"features.{layer}.bias"].float())
                for layer in CONVOLUTIONS
            ]
            first = weights[0][0].contiguous(memory_format=torch.channels_last), weights[0][1]
            # 5 x 5 taps first, then 3 x 3; these tiles are the fastest for maps of 31 and 15 px.
            others = [
                WinogradConvolution.of_weight(weight, bias, results)
                for (weight, bias), results in zip(weights[1:], (4, 5, 5, 5), strict=True)
            ]
        except Exception as error:
            raise OptionError(
                f"{backbone} is not torchvision's AlexNet ({type(error).__name__}: {reason_of(error)}); wanted"
                f" {BACKBONE_FILE}"
            ) from None
        return cls(first, others, _linear_weights(), hashlib.sha256(backbone.read_bytes()).hexdigest(), weights)

    def distances(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
        """Return the (N,) distances of the pairs of (N, H, W, 3) images; the networks expect [-1, 1]."""
        import torch
        from torch.nn import functional

        # By whole lines of 3 W numbers: numpy goes over a last axis of three at a tenth of the speed.
        count, height, width, _ = a.shape
        lines = np.ascontiguousarray(np.concatenate([a, b]), np.float32).reshape(2 * count, height, 3 * width)
        lines -= np.tile(MEAN, width)
        lines /= np.tile(DEVIATION, width)
        images = torch.from_numpy(lines.reshape(2 * count, height, width, 3))
        with torch.inference_mode():
            # Bands stay innermost throughout, which convolves, pools and normalises fastest on CPUs.
            x = images.permute(0, 3, 1, 2)
            total = torch.zeros(len(a), device="cpu")
            for layer, (stride, padding, pooled) in enumerate(CONVOLUTIONS.values()):
                if pooled:
                    x = functional.max_pool2d(x, 3, 2)
                if stride == 1:
                    x = self.others[layer - 1](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                else:
                    x = functional.conv2d(x, *self.first, stride=stride, padding=padding)
                functional.relu_(x)
                total += _layer_distance(x.permute(0, 2, 3, 1).flatten(1, 2), self.linear[layer])
        return total.double().numpy()


def _layer_distance(features: Tensor, linear: Tensor) -> Tensor:
    """Return (N,) distances of (2 N, H W, C) features: the first N images to the others."""
    import torch

    scale = 1 / (torch.linalg.vector_norm(features, dim=2, keepdim=True) + 1e-10)
    half = len(features) // 2
    difference = features[:half] * scale[:half] - features[half:] * scale[half:]
    weighted: Tensor = difference.square_() @ linear
    return weighted.mean(1)


def _linear_weights() -> list[Tensor]:
    """Return the published v_l, five tensors (C_l,), which lie in torchmetrics' folder."""
    import torch

    spec = importlib.util.find_spec("torchmetrics")
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else Path()
    published = folder / "functional" / "image" / "lpips_models" / "alex.pth"
    if not published.is_file():
        raise OptionError(f"torchmetrics lacks {published.name}, LPIPS's weights; install torchmetrics 1.9")
    heads = torch.load(published, map_location="cpu", weights_only=True)
    return [heads[f"lin{layer}.model.1.weight"].float().flatten() for layer in range(5)]
