"""What a file of scores holds, as far as those who read one rely on it: a file may have been edited since."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, create_model

from declouder.evaluation.summary import SCORES

_Number = float | None
_Ends = Annotated[list[float], Field(min_length=2, max_length=2)]
_scores: dict[str, Any] = dict.fromkeys(SCORES, (_Number, ...))
_Scores = create_model("_Scores", **_scores)


class _Row(_Scores):
    name: str
    cover: float
    thick_cover: float
    flat: bool
    bands: dict[str, dict[str, _Number]]
    regions: dict[str, dict[str, _Number] | None]
    changed: dict[str, float] | None
    spread: dict[str, Any] | None


class _Data(BaseModel):
    name: str
    split: str
    sha256: str


class _Method(BaseModel):
    name: str


class _File(BaseModel):
    data: _Data
    method: _Method
    lpips: dict[str, Any]
    kept: dict[str, str] | None
    definitions: dict[str, Any]
    versions: dict[str, Any]
    mean: _Scores
    interval: dict[str, _Ends | None]
    bands: dict[str, dict[str, _Number]]
    regions: dict[str, dict[str, Any]]
    groups: dict[str, dict[str, Any]]
    changed: dict[str, Any] | None
    spread: dict[str, Any] | None
    images: list[_Row]


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
