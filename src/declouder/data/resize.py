"""Antialiased bicubic resizing, as the paper's preprocessing does it (MATLAB's `imresize`).

Keys' kernel with a = -0.5, widened by the scale when an image shrinks, without rounding or clipping, so that
over- and undershoot survive. At the borders the kernel is cut and renormalised where `imresize` mirrors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def resize_bicubic(image: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Return (C, height, width) float32 for `image`: (C, H, W) float32 of any range."""
    if image.shape[-2:] == (height, width):
        return image
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in image]  # mode "F": floats stay floats
    return np.stack([np.asarray(band.resize((width, height), Image.Resampling.BICUBIC)) for band in bands])
