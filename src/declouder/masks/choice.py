"""Which mask a user wants."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from declouder.arguments import whole_number
from declouder.errors import OptionError
from declouder.masks.files import KINDS

NONE, AUTO = "none", "auto"


@dataclass(frozen=True)
class MaskChoice:
    """Which mask, how it is read, how far it is grown.

    Attributes:
        source: a raster file, "auto" for an estimate of our own, or "none": everything counts as cloud.
        kind: one of `KINDS`, for a file.
        values: with kind "values": what means cloud; None is every number but 0.
        feather_px: the mask is grown by so much, and fades out over the outer half of that.
        allow_outside: a file that is a VRT may name files outside its own folder.
    """

    source: Path | str = NONE
    kind: str = "values"
    values: tuple[int, ...] | None = None
    feather_px: int = 8
    allow_outside: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.source, (str, Path)):
            raise OptionError(f"the mask is {self.source!r}; give a file, {AUTO!r} or {NONE!r}")
        object.__setattr__(self, "feather_px", whole_number(self.feather_px, "feather"))
        if self.values is not None:
            given = self.values if isinstance(self.values, Iterable) else (self.values,)
            object.__setattr__(self, "values", tuple(whole_number(value, "a mask value") for value in given))
        if self.kind not in KINDS:
            raise OptionError(f"mask kind is {self.kind!r}; give one of {', '.join(KINDS)}")
        if self.values is not None and self.kind != "values":
            raise OptionError(f"mask values are given for the kind {self.kind}; give them with the kind values")
        if self.source in (NONE, AUTO) and (self.kind != "values" or self.values is not None):
            raise OptionError(
                f"the mask is {self.source}, which has neither kind nor values; give the file that they are of"
            )
        if not 0 <= self.feather_px <= 512:
            raise OptionError(f"feather is {self.feather_px} px; give 0 to 512")
