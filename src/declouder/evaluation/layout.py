"""What a file of scores holds, as far as those who read one rely on it: a file may have been edited since."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from declouder.breakdown import REGIONS
from declouder.evaluation.summary import SCORES


class _Part(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


_Number = float | None
_Ends = Annotated[list[float], Field(min_length=2, max_length=2)]
_scores: dict[str, Any] = dict.fromkeys(SCORES, (_Number, ...))
_Scores = create_model("_Scores", __base__=_Part, **_scores)


class _Band(_Part):
    psnr: _Number
    ssim: _Number
    mae: _Number
    lpips: _Number = None


class _Region(_Part):
    psnr: _Number
    ssim: _Number
    mae: _Number


class _RegionOfAll(_Region):
    images: int


class _Group(_Part):
    images: int
    mean: _Scores


class _Change(_Part):
    mean: float
    share: float


class _ChangeOfAll(_Part):
    mean: _Number
    share: _Number


class _Spread(_Part):
    mean: float
    correlation: _Number
    moments: Annotated[list[float], Field(min_length=6, max_length=6)]
    classes: list[Annotated[list[float], Field(min_length=3, max_length=3)]]


class _Class(_Part):
    begin: float = Field(alias="from")
    pixels: int
    spread: float
    error: float


class _SpreadOfAll(_Part):
    correlation: _Number
    rank_correlation: _Number
    mean: float
    calibrated: float
    reliability: list[_Class]


class _Doubts(_Part):
    used: float
    least_used: float
    framed: bool
    thickest: _Number


_regions: dict[str, Any] = dict.fromkeys(REGIONS, (_Region | None, ...))
_Regions = create_model("_Regions", __base__=_Part, **_regions)
_regions_of_all: dict[str, Any] = dict.fromkeys(REGIONS, (_RegionOfAll, ...))
_RegionsOfAll = create_model("_RegionsOfAll", __base__=_Part, **_regions_of_all)


class _Row(_Scores):
    name: str
    cover: float
    thick_cover: float
    flat: bool
    bands: Annotated[dict[str, _Band], Field(min_length=1)]
    regions: _Regions
    changed: _Change | None
    spread: _Spread | None
    doubts: _Doubts | None = None
    kept: list[str] | None = None


class _Data(_Part):
    name: str
    split: str
    sha256: str
    images: int
    data_range: float | _Ends | None = None


class _Method(_Part):
    name: str


class _Lpips(_Part):
    available: bool


class _Kept(_Part):
    folder: str


_definitions: dict[str, Any] = dict.fromkeys([*SCORES, "interval"], (str, ...))
_Definitions = create_model("_Definitions", __base__=_Part, regions=(dict[str, str], ...), **_definitions)


class _File(_Part):
    data: _Data
    method: _Method
    lpips: _Lpips
    kept: _Kept | None
    definitions: _Definitions
    versions: dict[str, Any]
    mean: _Scores
    interval: dict[str, _Ends | None]
    bands: dict[str, _Band]
    regions: _RegionsOfAll
    groups: dict[str, _Group]
    changed: _ChangeOfAll
    spread: _SpreadOfAll | None
    images: Annotated[list[_Row], Field(min_length=1)]


PARTS = tuple(_File.model_fields)
"""Keys of a file of scores, besides those that say what it is."""


def flaw_of_file(found: Any) -> str | None:
    """Return what is not as `evaluate` writes it, and where; None if nothing is."""
    return _flaw(_File, found)


def flaw_of_row(found: Any) -> str | None:
    """Return that of one of the file's "images"."""
    return _flaw(_Row, found)


def _flaw(wanted: type[BaseModel], found: Any) -> str | None:
    try:
        wanted.model_validate(found, strict=True)  # "33" is no number
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}" if where else str(first["msg"])
    return None
