"""Where the cloud is: masks from files and of our own making, as the share of each pixel that is restored.

    choice = MaskChoice(Path("clouds.tif"), feather_px=8)
    with open_mask(choice, reader, bands=bands.numbers, names=bands.names, scale=scale) as mask:
        share = mask.share(rows, cols)      # 0: the pixel stays as it is, bit by bit; 1: it is restored

docs/python.md has the lines before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from declouder.masks.choice import AUTO, NONE, MaskChoice
from declouder.masks.cloudiness import Cloudiness, veil
from declouder.masks.feathered import MaskSource, SceneMask, widened
from declouder.masks.files import FileMask
from declouder.raster import RasterReader, open_aligned
from declouder.scaling import Scaling

__all__ = ["AUTO", "NONE", "MaskChoice", "MaskSource", "SceneMask", "open_mask", "veil", "widened"]


@contextmanager
def open_mask(
    choice: MaskChoice,
    reader: RasterReader,
    *,
    bands: Sequence[int],
    names: Sequence[str],
    scale: Scaling,
) -> Iterator[SceneMask | None]:
    """Open the mask of a scene; None where everything counts as cloud.

    Args:
        choice: which mask.
        reader: the scene.
        bands: the 1-based numbers of its bands that the model sees, for "auto".
        names: what the model calls them.
        scale: the scene's, for "auto".

    Raises:
        RasterError: if the mask cannot be read or laid over the scene.
        OptionError: if it cannot be made of these bands, or holds no such values.
    """
    height, width = reader.info.height, reader.info.width
    if choice.source == NONE:
        yield None
    elif choice.source == AUTO:
        source = Cloudiness(reader, bands=bands, names=names, scale=scale)
        yield SceneMask(
            source,
            height=height,
            width=width,
            feather_px=choice.feather_px,
            threshold=source.threshold,
            source_reach_px=source.reach_px,
        )
    else:
        with open_aligned(Path(choice.source), reader.info, allow_outside=choice.allow_outside) as aligned:
            mask = FileMask(aligned, choice.kind, choice.values)
            _, valid = reader.read_reduced(bands)
            mask.tell_oddities(np.logical_and.reduce(valid))
            yield SceneMask(
                mask, height=height, width=width, feather_px=choice.feather_px, files=aligned.info.files
            )
