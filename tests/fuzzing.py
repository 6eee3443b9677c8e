"""Mutated inputs for fuzzing: files that are nearly right. Used by test_fuzz.py and benchmarks/fuzz.py.

    outcome(case, folder)    # "wrote" or the error's line; raises if declouder does anything else

A case is a kind of file, a seed that picks which valid file is spoilt, and a list of edits to its bytes.
"""

from __future__ import annotations

import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from hypothesis import strategies as st
from PIL import Image

from conftest import FakePipeline, write_tif
from declouder import journal as journals
from declouder.errors import DeclouderError
from declouder.journal import journal_path
from declouder.masks import MaskChoice
from declouder.scene import SceneOptions, remove_from_scene

KINDS = ("tif", "tiled", "png", "jpg", "webp", "vrt", "mask", "journal", "model")
OPTIONS = SceneOptions(window_px=32, overlap_px=8, max_pixels=10**6)
# Numbers that parsers trip over.
TELLING = (
    b"\0",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\0\0\0\x80",
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"../",
    b"<",
    b'"',
)


@dataclass(frozen=True)
class Case:
    """One input to try: `edits` are (place in [0, 1), how, what)."""

    kind: str
    seed: int
    edits: tuple[tuple[float, str, bytes], ...]


def cases(kinds: tuple[str, ...] = KINDS) -> st.SearchStrategy[Case]:
    """Return a hypothesis strategy of cases."""
    what = st.one_of(st.sampled_from(TELLING), st.binary(min_size=1, max_size=8))
    # Headers are where the decisions are: half of the edits go there.
    place = st.one_of(st.floats(0, 0.05), st.floats(0, 1, exclude_max=True))
    edit = st.tuples(place, st.sampled_from(("replace", "insert", "delete", "truncate")), what)
    return st.builds(
        Case, st.sampled_from(kinds), st.integers(0, 2**16), st.lists(edit, min_size=1, max_size=6).map(tuple)
    )


def spoilt(data: bytes, case: Case) -> bytes:
    """Return `data` with the edits of a case."""
    for place, how, what in case.edits:
        at = int(place * len(data))
        if how == "replace":
            data = data[:at] + what + data[at + len(what) :]
        elif how == "insert":
            data = data[:at] + what + data[at:]
        elif how == "delete":
            data = data[:at] + data[at + len(what) :]
        else:
            data = data[: max(at, 1)]
    return data


def outcome(case: Case, folder: Path, model: Path | None = None) -> str:
    """Run one case in an empty folder; return what came of it.

    Raises:
        AssertionError: if anything was left that should not be.
        Exception: whatever declouder raises that is no DeclouderError.
    """
    options, source = OPTIONS, folder / "a.tif"
    rng = np.random.default_rng(case.seed)
    dn = rng.integers(0, 255, (3, 40, 50), dtype=np.uint8)
    if case.kind in ("tif", "tiled", "mask", "journal", "vrt", "model"):
        profile: dict[str, Any] = {"compress": ("none", "deflate", "lzw")[case.seed % 3]}
        if case.kind == "tiled":
            profile |= {"tiled": True, "blockxsize": 16, "blockysize": 16, "interleave": "pixel"}
        dn = dn.astype(("uint8", "uint16", "int16", "float32")[case.seed % 4])
        write_tif(source, dn, nodata=0, **profile)
    if case.kind in ("tif", "tiled"):
        source.write_bytes(spoilt(source.read_bytes(), case))
    elif case.kind in ("png", "jpg", "webp"):
        source = folder / f"a.{case.kind}"
        Image.fromarray(dn.transpose(1, 2, 0)).save(source, **({"lossless": True} if case.kind == "webp" else {}))
        source.write_bytes(spoilt(source.read_bytes(), case))
    elif case.kind == "vrt":
        rasterio.shutil.copy(source, folder / "a.vrt", driver="VRT")
        source = folder / "a.vrt"
        source.write_bytes(spoilt(source.read_bytes(), case))
    elif case.kind == "mask":
        mask = write_tif(folder / "mask.tif", (dn[:1] > 100).astype(np.uint8))
        mask.write_bytes(spoilt(mask.read_bytes(), case))
        options = SceneOptions(**{**vars(options), "mask": MaskChoice(mask)})
    elif case.kind == "journal":
        _leave_a_journal(source, folder / "b.tif", case)
    elif case.kind == "model":
        assert model is not None
        return _load_spoilt_model(case, folder, model)
    before = {path.name for path in folder.iterdir()} - {journal_path(folder / "b.tif").name}
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            remove_from_scene(source, folder / "b.tif", _halved(), options)
    except DeclouderError as error:
        assert "\n" not in str(error), error
        assert {path.name for path in folder.iterdir()} == before, "something was left"
        return str(error)
    assert {path.name for path in folder.iterdir()} == before | {"b.tif"}, "something was left"
    if case.kind == "journal":
        expected = folder / "c.tif"
        remove_from_scene(source, expected, _halved(), options)
        assert expected.read_bytes() == (folder / "b.tif").read_bytes(), "a spoilt journal changed the result"
    return "wrote"


def _halved() -> FakePipeline:
    return FakePipeline(lambda cloudy, latents: cloudy * 0.5 + 0.01 * latents.sigmoid())


class _Stopped(BaseException):
    pass


def _leave_a_journal(source: Path, output: Path, case: Case) -> None:
    def stops(cloudy: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        if len(pipeline.seen) == 3:
            raise _Stopped
        return cloudy * 0.5 + 0.01 * latents.sigmoid()

    pipeline = FakePipeline(stops)
    worth, journals.WORTH_KEEPING_S = journals.WORTH_KEEPING_S, 0.0
    try:
        remove_from_scene(source, output, pipeline, OPTIONS)
    except _Stopped:
        journal = journal_path(output)
        journal.write_bytes(spoilt(journal.read_bytes(), case))
    finally:
        journals.WORTH_KEEPING_S = worth


def _load_spoilt_model(case: Case, folder: Path, model: Path) -> str:
    from declouder.pipeline import CloudRemovalPipeline

    copy = folder / "model"
    shutil.copytree(model, copy)
    configs = sorted(path for path in copy.rglob("*.json"))
    config = configs[case.seed % len(configs)]
    config.write_bytes(spoilt(config.read_bytes(), case))
    try:
        # A width of 10^9 in a config would be memory, not an error: such a file is a valid request.
        if any(len(str(value)) > 6 for value in _numbers(json.loads(config.read_text(encoding="utf-8")))):
            return "not tried"
    except (ValueError, RecursionError):
        pass
    try:
        CloudRemovalPipeline.from_pretrained(copy)
    except DeclouderError as error:
        assert "\n" not in str(error), error
        return str(error)
    return "loaded"


def _numbers(values: Any) -> list[float]:
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        return [number for value in values for number in _numbers(value)]
    return [values] if isinstance(values, int | float) else []
