"""Nothing is lost: a run that is killed goes on, and gives what an uninterrupted run gives."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch

from conftest import FakePipeline, names_in, read_tif, write_tif
from declouder import journal as journals
from declouder.errors import ModelError, OutputError, RasterError
from declouder.masks import MaskChoice
from declouder.mosaic import plan_windows
from declouder.raster import writing
from declouder.scaling import Scaling
from declouder.scene import SceneOptions, removal, remove_from_scene
from declouder.scene.engine import Here

SMALL = SceneOptions(window_px=64, overlap_px=16)


class Killed(BaseException):
    pass


def draws(cloudy: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    return (cloudy * 0.5 + 0.1 + 0.02 * latents).clamp(0, 1)


def killed_at(call: int) -> FakePipeline:
    calls = iter(range(10**6))

    def f(cloudy, latents):
        if next(calls) == call:
            raise Killed
        return draws(cloudy, latents)

    return FakePipeline(f)


@pytest.fixture(autouse=True)
def every_journal_is_worth_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "WORTH_KEEPING_S", 0.0)


@pytest.fixture
def source(tmp_path: Path, rng: np.random.Generator) -> Path:
    return write_tif(tmp_path / "a.tif", rng.integers(0, 9000, (3, 150, 200), dtype=np.uint16))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_stopped_run_goes_on_without_repeating_windows_and_ends_with_the_same_bytes(batch, source, tmp_path):
    options = replace(SMALL, batch=batch)
    whole = FakePipeline(draws)
    remove_from_scene(source, tmp_path / "whole.tif", whole, options)
    seen = 0
    for call in (2, 1):
        pipeline = killed_at(call)
        with pytest.raises(Killed):
            remove_from_scene(source, tmp_path / "b.tif", pipeline, options)
        seen += len(pipeline.seen) - 1
        assert not (tmp_path / "b.tif").exists()
    rest = FakePipeline(draws)
    remove_from_scene(source, tmp_path / "b.tif", rest, options)
    assert seen + len(rest.seen) == len(whole.seen)
    assert (tmp_path / "b.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert names_in(tmp_path) == ["a.tif", "b.tif", "whole.tif"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "another seed"),
        ({"window_px": 80}, "another window"),
        ({"steps": 3}, "another steps"),
        ({"enlarge": 2}, "another enlarge"),
        ({"overlap_px": 8}, "another overlap"),
        ({"least_painted": 0.3}, "another least painted"),
        ({"nodata": 250.0}, "another nodata"),
    ],
)
def test_another_option_starts_anew_and_says_so(change, words, source, tmp_path, caplog):
    with pytest.raises(Killed):
        remove_from_scene(source, tmp_path / "b.tif", killed_at(3), SMALL)
    caplog.set_level("INFO", "declouder")
    pipeline = FakePipeline(lambda cloudy, _: cloudy)
    report = remove_from_scene(source, tmp_path / "b.tif", pipeline, replace(SMALL, **change))
    assert len(pipeline.seen) == report.windows
    assert "started anew" in caplog.text and words in caplog.text


def test_another_precision_starts_anew_and_says_so(source, tmp_path, caplog):
    with pytest.raises(Killed):
        remove_from_scene(source, tmp_path / "b.tif", killed_at(3), SMALL)
    caplog.set_level("INFO", "declouder")
    pipeline = FakePipeline(lambda cloudy, _: cloudy)
    pipeline.steps_dtype = torch.bfloat16
    report = remove_from_scene(source, tmp_path / "b.tif", pipeline, SMALL)
    assert len(pipeline.seen) == report.windows
    assert "started anew" in caplog.text and "another precision" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"feather_px": 3}, "another feather"),
        ({"values": (1, 2)}, "another mask kind"),
        ({"kind": "landsat-qa"}, "another mask kind"),
    ],
)
def test_a_mask_that_is_read_in_another_way_starts_anew(change, words, source, tmp_path, caplog):
    path = write_tif(tmp_path / "mask.tif", np.ones((1, 150, 200), np.uint8))
    masked = replace(SMALL, mask=MaskChoice(path, feather_px=0))
    with pytest.raises(Killed):
        remove_from_scene(source, tmp_path / "b.tif", killed_at(3), masked)
    caplog.set_level("INFO", "declouder")
    other = replace(masked, mask=replace(masked.mask, **change))
    remove_from_scene(source, tmp_path / "b.tif", FakePipeline(draws), other)
    assert "started anew" in caplog.text and words in caplog.text


def test_another_number_of_draws_starts_anew(source, tmp_path, caplog):
    options = replace(SMALL, samples=2, provenance=tmp_path / "made_up.tif")
    with pytest.raises(Killed):
        remove_from_scene(source, tmp_path / "b.tif", killed_at(5), options)
    caplog.set_level("INFO", "declouder")
    remove_from_scene(source, tmp_path / "b.tif", FakePipeline(draws), replace(options, samples=3))
    assert "started anew" in caplog.text and "another samples" in caplog.text


def test_another_input_or_mask_starts_anew(source, tmp_path, caplog):
    with pytest.raises(Killed):
        remove_from_scene(source, tmp_path / "b.tif", killed_at(3), SMALL)
    write_tif(source, read_tif(source) // 2)
    caplog.set_level("INFO", "declouder")
    remove_from_scene(source, tmp_path / "b.tif", FakePipeline(draws), SMALL)
    assert "started anew" in caplog.text and "input" in caplog.text


@pytest.mark.parametrize("sidecar", ["a.tif.msk", "a.tif.aux.xml", "a.tfw"])
def test_another_file_beside_the_input_starts_anew(sidecar, source, tmp_path, caplog):
    with pytest.raises(Killed):
        remove_from_scene(source, tmp_path / "b.tif", killed_at(3), SMALL)
    if sidecar.endswith("msk"):
        write_tif(tmp_path / sidecar, np.full((1, 150, 200), 255, np.uint8))
    else:
        text = '<PAMDataset><Metadata><MDI key="a">1</MDI></Metadata></PAMDataset>'
        (tmp_path / sidecar).write_text(text if "xml" in sidecar else "10\n0\n0\n-10\n5\n5\n")
    caplog.set_level("INFO", "declouder")
    remove_from_scene(source, tmp_path / "b.tif", FakePipeline(draws), SMALL)
    assert "another input" in caplog.text


def test_statistics_that_a_viewer_wrote_beside_the_input_do_not_start_anew(source, tmp_path, caplog):
    with pytest.raises(Killed):
        remove_from_scene(source, tmp_path / "b.tif", killed_at(3), SMALL)
    (tmp_path / "a.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><Histograms><HistItem><HistMin>0</HistMin><HistMax>9</HistMax>'
        "<BucketCount>2</BucketCount><HistCounts>3|4</HistCounts></HistItem></Histograms>"
        '<Metadata><MDI key="STATISTICS_MEAN">4</MDI></Metadata></PAMRasterBand></PAMDataset>'
    )
    caplog.set_level("INFO", "declouder")
    report = remove_from_scene(source, tmp_path / "b.tif", FakePipeline(draws), SMALL)
    assert f"continued: {report.continued} of {report.windows} windows" in caplog.text
    assert 0 < report.continued < report.windows


@pytest.mark.parametrize("which", ["input", "mask"])
def test_another_file_behind_a_vrt_starts_anew(which, source, tmp_path, caplog):
    vrt = tmp_path / "a.vrt"
    rasterio.shutil.copy(source, vrt, driver="VRT")
    mask = write_tif(tmp_path / "mask.tif", np.ones((1, 150, 200), np.uint8))
    mask_vrt = tmp_path / "mask.vrt"
    rasterio.shutil.copy(mask, mask_vrt, driver="VRT")
    options = replace(SMALL, mask=MaskChoice(mask_vrt))
    with pytest.raises(Killed):
        remove_from_scene(vrt, tmp_path / "b.tif", killed_at(3), options)
    changed = source if which == "input" else mask
    write_tif(changed, read_tif(changed) // 2 + 1)
    caplog.set_level("INFO", "declouder")
    remove_from_scene(vrt, tmp_path / "b.tif", FakePipeline(draws), options)
    assert "started anew" in caplog.text and f"another {which}" in caplog.text


def test_a_file_behind_a_vrt_is_not_written_over(source, tmp_path):
    vrt = tmp_path / "a.vrt"
    rasterio.shutil.copy(source, vrt, driver="VRT")
    mask = write_tif(tmp_path / "mask.tif", np.ones((1, 150, 200), np.uint8))
    mask_vrt = tmp_path / "mask.vrt"
    rasterio.shutil.copy(mask, mask_vrt, driver="VRT")
    before = source.read_bytes(), mask.read_bytes()
    options = replace(SMALL, mask=MaskChoice(mask_vrt), overwrite=True)
    new = tmp_path / "b.tif"
    for output, provenance in ((source, None), (mask, None), (new, source), (new, mask)):
        with pytest.raises(OutputError, match="is the input"):
            remove_from_scene(vrt, output, FakePipeline(draws), replace(options, provenance=provenance))
    assert (source.read_bytes(), mask.read_bytes()) == before


def test_a_provenance_does_not_appear_without_its_output(source, tmp_path, monkeypatch):
    def full(*arguments: object, **options: object) -> None:
        raise rasterio.errors.RasterioIOError("no space left on device")

    def with_weights(cloudy: torch.Tensor, *, latents: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(images=cloudy, weights=cloudy, reference=cloudy)

    pipeline = FakePipeline(draws)
    monkeypatch.setattr(FakePipeline, "__call__", staticmethod(with_weights))
    monkeypatch.setattr(rasterio.shutil, "copy", full)
    options = replace(SMALL, cog=True, provenance=tmp_path / "made_up.tif")
    with pytest.raises(OutputError, match="no space left"):
        remove_from_scene(source, tmp_path / "b.tif", pipeline, options)
    assert names_in(tmp_path) == [".b.tif.journal", "a.tif"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_disk_that_is_full_at_the_last_moment_leaves_both_files_as_they_were(
    failing, overwrite, source, tmp_path, monkeypatch
):
    synced = []

    def fsync(file: int, *, real: Any = os.fsync) -> None:
        if Path(f"/proc/self/fd/{file}").resolve().suffix == ".part":
            synced.append(file)
            if len(synced) == failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    output, made_up = tmp_path / "b.tif", tmp_path / "made_up.tif"
    if overwrite:
        output.write_bytes(b"old")
        made_up.write_bytes(b"old too")
    options = replace(SMALL, provenance=made_up, overwrite=overwrite)
    before = names_in(tmp_path)
    with pytest.raises(OutputError, match="No space left on device"):
        remove_from_scene(source, output, FakePipeline(draws), options)
    assert [name for name in names_in(tmp_path) if not name.endswith(".journal")] == before
    assert not overwrite or (output.read_bytes(), made_up.read_bytes()) == (b"old", b"old too")
    assert len(synced) == failing


@pytest.mark.parametrize("is_link", [False, True])
def test_a_provenance_goes_again_if_its_output_cannot_get_its_name(is_link, source, tmp_path, monkeypatch):
    real = Path.replace

    def replaced(self: Path, target: Path) -> Path:
        if target.name == "b.tif":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replaced)
    made_up = tmp_path / "made_up.tif"
    if is_link:  # which led nowhere, and stays
        made_up.symlink_to("elsewhere.tif")
    before = names_in(tmp_path)
    with pytest.raises(OutputError, match=r"b\.tif cannot be written"):
        remove_from_scene(source, tmp_path / "b.tif", FakePipeline(draws), replace(SMALL, provenance=made_up))
    assert [name for name in names_in(tmp_path) if not name.endswith(".journal")] == before


def test_a_failing_window_fails_the_scene_and_names_its_place(source, tmp_path):
    def fails_late(cloudy, latents):
        if len(pipeline.seen) == 6:
            raise RuntimeError("kernel launch failed")
        return draws(cloudy, latents)

    pipeline = FakePipeline(fails_late)
    height, width = read_tif(source).shape[1:]
    sixth = plan_windows(height, width, 64, 16, (-400_000, 50_000))[5]  # from 500 km east, 4,000 km north, by 10 m
    with pytest.raises(ModelError, match=rf"row {sixth.row}, column {sixth.col} .*kernel launch failed"):
        remove_from_scene(source, tmp_path / "b.tif", pipeline, SMALL)
    assert not (tmp_path / "b.tif").exists()


def test_what_a_killed_run_left_of_its_output_is_cleared_away(source, tmp_path):
    (tmp_path / ".b.tif.4242.part").write_bytes(b"torn")
    (tmp_path / ".b.tif.4242.part.tif").write_bytes(b"torn")
    (tmp_path / ".b.tif.mine").write_bytes(b"not ours")
    remove_from_scene(source, tmp_path / "b.tif", FakePipeline(draws), SMALL)
    assert names_in(tmp_path) == [".b.tif.mine", "a.tif", "b.tif"]


def test_a_file_that_appears_at_the_provenances_name_meanwhile_is_kept(source, tmp_path):
    foreign = tmp_path / "made_up.tif"

    def appears(cloudy, latents):
        foreign.write_bytes(b"precious")
        return draws(cloudy, latents)

    options = replace(SMALL, provenance=foreign)
    with pytest.raises(OutputError, match=r"made_up\.tif exists already"):
        remove_from_scene(source, tmp_path / "b.tif", FakePipeline(appears), options)
    assert foreign.read_bytes() == b"precious" and not (tmp_path / "b.tif").exists()
    again = replace(options, overwrite=True)
    remove_from_scene(source, tmp_path / "b.tif", killed_at(0), again)
    assert read_tif(foreign).shape[0] == 2


def test_a_part_of_the_provenance_stays_while_its_process_lives(source, tmp_path):
    living, dead = (tmp_path / f".made_up.tif.{number}.part" for number in (os.getppid(), 2**22 + 1))
    for part in (living, dead):
        part.write_bytes(b"torn")
    options = replace(SMALL, provenance=tmp_path / "made_up.tif")
    remove_from_scene(source, tmp_path / "b.tif", FakePipeline(draws), options)
    assert living.exists() and not dead.exists()


def test_two_runs_on_one_output_are_refused(source, tmp_path):
    def a_second_run(cloudy, latents):
        with pytest.raises(OutputError, match="another run"):
            remove_from_scene(source, tmp_path / "b.tif", FakePipeline(draws), SMALL)
        return draws(cloudy, latents)

    remove_from_scene(source, tmp_path / "b.tif", FakePipeline(a_second_run), SMALL)
    remove_from_scene(source, tmp_path / "c.tif", FakePipeline(draws), SMALL)
    np.testing.assert_array_equal(read_tif(tmp_path / "b.tif"), read_tif(tmp_path / "c.tif"))


# A run in a process of its own, with a model that is quick and the same every time.
CHILD = """
import sys, time, torch
from pathlib import Path
from types import SimpleNamespace
from diffusers import DDIMScheduler
from diffusers.configuration_utils import FrozenDict
from declouder.scene import SceneOptions, remove_from_scene
torch.set_num_threads(1)
class Slow:
    config = FrozenDict(bands=["red", "green", "blue"], num_inference_steps=1)
    device, components, scheduler = torch.device("cpu"), {}, DDIMScheduler()
    computing_device, steps_dtype = device, torch.float32
    def __call__(self, cloudy, *, latents, **_):
        time.sleep(0.02)
        images = (cloudy * 0.5 + 0.1 + 0.02 * latents).clamp(0, 1)
        return SimpleNamespace(images=images, weights=images, reference=cloudy)
source, output = Path(sys.argv[1]), Path(sys.argv[2])
if len(sys.argv) > 3:
    # Writes slowly, and says in a file how many times the model was asked.
    from declouder.raster import RasterWriter
    write, ask = RasterWriter.write, Slow.__call__
    RasterWriter.write = lambda self, *area: (time.sleep(float(sys.argv[3])), write(self, *area))[1]
    def counted(self, *images, **options):
        with open(output.parent / "asked", "a") as file:
            file.write("x")
        return ask(self, *images, **options)
    Slow.__call__ = counted
options = SceneOptions(window_px=64, overlap_px=16, batch=2, provenance=output.with_name("said.tif"))
remove_from_scene(source, output, Slow(), options)
"""


def start(arguments: Sequence[object]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_kill_9_at_any_moment_and_the_same_command_again_give_the_bytes_of_an_uninterrupted_run(tmp_path, rng):
    source = write_tif(tmp_path / "a.tif", rng.integers(0, 9000, (3, 400, 500), dtype=np.uint16))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    assert start([source, whole / "b.tif"]).wait(120) == 0
    kills = 0
    for wait_s in (0.1, 0.3, 0.0, 0.6, 0.2, 60.0):
        process = start([source, broken / "b.tif"])
        # From the moment on that it has begun, not while Python is starting.
        journal = broken / ".b.tif.journal"
        before = journal.stat().st_size if journal.exists() else 0
        while process.poll() is None and (not journal.exists() or journal.stat().st_size == before):
            time.sleep(0.005)
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, process.stderr.read()
        kills += 1
        if (broken / "b.tif").exists():
            break  # the name appears last: killed with all but the tidying done
    assert kills >= 2
    assert names_in(whole) == ["b.tif", "said.tif"]
    assert set(names_in(broken)) - {".b.tif.journal"} == set(names_in(whole))
    assert process.returncode != 0 or not (broken / ".b.tif.journal").exists()
    for name in ("b.tif", "said.tif"):
        assert read_tif(broken / name).tobytes() == read_tif(whole / name).tobytes()


def test_kill_9_while_the_output_is_written_costs_no_window_and_no_byte(tmp_path, rng):
    source = write_tif(tmp_path / "a.tif", rng.integers(0, 9000, (3, 600, 500), dtype=np.uint16))
    folders = whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in folders:
        folder.mkdir()
    assert start([source, whole / "b.tif", 0]).wait(120) == 0
    process = start([source, broken / "b.tif", 0.5])
    started = time.monotonic()
    while not list(broken.glob(".b.tif.*.part")) and time.monotonic() - started < 120:
        time.sleep(0.005)
    time.sleep(0.7)  # half a second an area: in the midst of it
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert not (broken / "b.tif").exists() and list(broken.glob(".b.tif.*.part"))
    asked = (broken / "asked").stat().st_size
    assert asked == (whole / "asked").stat().st_size
    assert start([source, broken / "b.tif", 0]).wait(120) == 0
    assert (broken / "asked").stat().st_size == asked  # the model was not asked again
    assert names_in(broken) == names_in(whole) == ["asked", "b.tif", "said.tif"]
    for name in ("b.tif", "said.tif"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


def test_the_estimates_threshold_is_part_of_what_a_run_goes_on_with(source, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="declouder")
    options = replace(SMALL, mask=MaskChoice("auto"))
    with pytest.raises(Killed):
        remove_from_scene(source, tmp_path / "b.tif", killed_at(3), options)
    monkeypatch.setattr("declouder.masks.cloudiness._SHARE_ABOVE_DARK", 0.4)
    remove_from_scene(source, tmp_path / "b.tif", FakePipeline(draws), options)
    assert "continued" not in caplog.text


def test_the_provenance_of_another_scene_is_kept_whatever_journal_lies_there(source, tmp_path, rng):
    other = write_tif(tmp_path / "other.tif", rng.integers(0, 9000, (3, 90, 80), dtype=np.uint16))
    options = replace(SMALL, provenance=tmp_path / "made_up.tif")
    remove_from_scene(other, tmp_path / "clear.tif", FakePipeline(draws), options)
    before = (tmp_path / "made_up.tif").read_bytes()
    with pytest.raises(Killed):
        remove_from_scene(source, tmp_path / "b.tif", killed_at(3), SMALL)
    with pytest.raises(OutputError, match=r"made_up\.tif exists already"):
        remove_from_scene(source, tmp_path / "b.tif", FakePipeline(draws), options)
    assert (tmp_path / "made_up.tif").read_bytes() == before


def test_the_provenance_of_another_output_of_the_same_scene_is_kept(source, tmp_path):
    options = replace(SMALL, provenance=tmp_path / "made_up.tif")
    remove_from_scene(source, tmp_path / "clear.tif", FakePipeline(draws), options)
    before = (tmp_path / "made_up.tif").read_bytes()
    other = replace(options, seed=3)
    with pytest.raises(Killed):
        remove_from_scene(source, tmp_path / "b.tif", killed_at(3), replace(other, provenance=None))
    with pytest.raises(OutputError, match=r"made_up\.tif exists already"):
        remove_from_scene(source, tmp_path / "b.tif", FakePipeline(draws), other)
    assert (tmp_path / "made_up.tif").read_bytes() == before


def stopping(cloudy, latents):
    stopping.calls += 1
    if stopping.calls == 4:
        raise Killed
    return cloudy


class Sampler:
    """A sampler of one setting."""

    def __init__(self, eta: float) -> None:
        self.config = {"eta": eta}


@pytest.mark.parametrize(
    ("options", "sampler", "device", "words"),
    [
        ({"threads": 2}, 0, "cpu", "another threads"),
        ({"scale": Scaling(0, 8000)}, 0, "cpu", "another scale"),
        ({"bands": (3, 2, 1)}, 0, "cpu", "another bands"),
        ({}, 1, "cpu", "another sampler"),
        ({}, 0, "meta", "another device"),
    ],
)
def test_all_else_that_a_pixel_depends_on_starts_anew(options, sampler, device, words, tmp_path, rng, caplog):
    source = write_tif(tmp_path / "a.tif", rng.integers(0, 9000, (3, 150, 200), dtype=np.uint16))
    before = replace(SMALL, threads=1, scale=Scaling(0, 9000))
    stopping.calls = 0
    first = FakePipeline(stopping)
    first.scheduler = Sampler(0)
    with pytest.raises(Killed):
        remove_from_scene(source, tmp_path / "b.tif", first, before)
    caplog.set_level("INFO", "declouder")
    second = FakePipeline(lambda cloudy, _: cloudy.cpu())
    second.scheduler = Sampler(sampler)
    engine = None
    if device != "cpu":

        def engine(options, layers):
            here = Here(second, options, layers)
            here.device = device
            return here

    remove_from_scene(source, tmp_path / "b.tif", second, replace(before, **options), engine=engine)
    assert "started anew" in caplog.text and words in caplog.text


def test_without_steps_the_seed_is_no_matter_of_what_a_run_goes_on_with(source, tmp_path, caplog):
    caplog.set_level("INFO", logger="declouder")
    stopping.calls = 0
    with pytest.raises(Killed):
        remove_from_scene(source, tmp_path / "b.tif", FakePipeline(stopping), replace(SMALL, steps=0))
    again = FakePipeline(lambda cloudy, _: cloudy)
    remove_from_scene(source, tmp_path / "b.tif", again, replace(SMALL, steps=0, seed=4))
    assert "continued" in caplog.text
    with rasterio.open(tmp_path / "b.tif") as written:
        assert written.tags()["DECLOUDER_SEED"] == "none"


def test_a_run_that_is_stopped_while_it_writes_leaves_no_output_and_goes_on(source, tmp_path):
    whole = FakePipeline(lambda cloudy, _: cloudy)

    def stopped(options, layers):
        here = Here(whole, options, layers)
        here.heed_stop = Mock(side_effect=Killed)
        return here

    big = replace(SMALL, provenance=tmp_path / "said.tif")
    with pytest.raises(Killed):
        remove_from_scene(source, tmp_path / "b.tif", whole, big, engine=stopped)
    assert not list(tmp_path.glob("*.part")) and not (tmp_path / "b.tif").exists()
    assert not (tmp_path / "said.tif").exists()
    rest = FakePipeline(lambda cloudy, _: cloudy)
    remove_from_scene(source, tmp_path / "b.tif", rest, big)
    assert not rest.seen and (tmp_path / "b.tif").exists()


def test_a_run_that_was_killed_between_its_two_files_goes_on(tmp_path, rng, monkeypatch):
    source = write_tif(tmp_path / "a.tif", rng.integers(0, 9000, (3, 90, 80), dtype=np.uint16))
    options = replace(SMALL, provenance=tmp_path / "said.tif")
    published = []

    def publish(*arguments, real=writing._publish, **others):
        if published:
            raise Killed
        published.append(arguments)
        real(*arguments, **others)

    monkeypatch.setattr(writing, "_publish", publish)
    with pytest.raises(Killed):
        remove_from_scene(source, tmp_path / "b.tif", FakePipeline(lambda cloudy, _: cloudy), options)
    monkeypatch.undo()
    monkeypatch.setattr(journals, "WORTH_KEEPING_S", 0.0)
    assert (tmp_path / "said.tif").exists() and not (tmp_path / "b.tif").exists()
    rest = FakePipeline(lambda cloudy, _: cloudy)
    remove_from_scene(source, tmp_path / "b.tif", rest, options)
    assert not rest.seen and (tmp_path / "b.tif").exists()


def test_an_output_folder_that_goes_ends_the_run_at_the_next_window(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(journals, "_SYNC_EVERY_S", 0.0)
    source = write_tif(tmp_path / "a.tif", rng.integers(0, 256, (3, 200, 180), dtype=np.uint8))
    folder = tmp_path / "out"
    folder.mkdir()
    seen = []

    def gone(done: int, total: int) -> None:
        seen.append(done)
        if done == 1:
            shutil.rmtree(folder)

    pipeline = FakePipeline(lambda cloudy, latents: cloudy)
    options = SceneOptions(window_px=64, overlap_px=16)
    with pytest.raises(OutputError, match=r"b\.tif\.journal was removed in the middle of the run; run it again"):
        remove_from_scene(source, folder / "b.tif", pipeline, options, progress=gone)
    assert len(seen) < 4


def test_an_output_folder_that_goes_after_the_last_window_is_told(tmp_path, rng):
    source = write_tif(tmp_path / "a.tif", rng.integers(0, 256, (3, 40, 50), dtype=np.uint8))
    folder = tmp_path / "out"
    folder.mkdir()
    pipeline = FakePipeline(lambda cloudy, latents: shutil.rmtree(folder) or cloudy)
    with pytest.raises(OutputError, match=r"the output folder .*out does not exist; make it first"):
        remove_from_scene(source, folder / "b.tif", pipeline, SceneOptions(window_px=64, overlap_px=16))


@pytest.mark.parametrize("way", ["over", "replaced", "deleted"])
def test_a_scene_that_is_written_over_while_it_is_read_is_told(way, tmp_path, rng):
    dn = rng.integers(1, 256, (3, 40, 50), dtype=np.uint8)
    source = write_tif(tmp_path / "a.tif", dn)
    other = write_tif(tmp_path / "other.tif", dn[:, ::-1])

    def meanwhile(cloudy: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        if way == "over":
            source.write_bytes(other.read_bytes())
        elif way == "replaced":
            other.replace(source)
        else:
            source.unlink()
        return cloudy

    options = SceneOptions(window_px=64, overlap_px=16)
    if way == "over":
        with pytest.raises(RasterError, match=r"a\.tif was changed while it was read; run again when it is whole"):
            remove_from_scene(source, tmp_path / "b.tif", FakePipeline(meanwhile), options)
        assert not (tmp_path / "b.tif").exists()
    else:  # who has a file open goes on with it
        remove_from_scene(source, tmp_path / "b.tif", FakePipeline(meanwhile), options)
        np.testing.assert_array_equal(read_tif(tmp_path / "b.tif"), dn)


def test_a_file_that_a_vrt_names_may_be_replaced_by_a_copy_of_itself(source, tmp_path):
    rasterio.shutil.copy(source, tmp_path / "a.vrt", driver="VRT")

    def meanwhile(cloudy: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        shutil.copy2(source, tmp_path / "copy.tif").replace(source)
        return cloudy

    remove_from_scene(tmp_path / "a.vrt", tmp_path / "b.tif", FakePipeline(meanwhile), SMALL)
    np.testing.assert_array_equal(read_tif(tmp_path / "b.tif"), read_tif(source))


@pytest.mark.parametrize("way", ["over", "replaced"])
def test_a_file_that_a_vrt_names_and_that_changes_while_it_is_read_is_told(way, source, tmp_path):
    rasterio.shutil.copy(source, tmp_path / "a.vrt", driver="VRT")
    other = write_tif(tmp_path / "other.tif", read_tif(source)[:, ::-1])

    def meanwhile(cloudy: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        if other.exists():
            source.write_bytes(other.read_bytes())
            (other.unlink if way == "over" else lambda: other.replace(source))()
        return cloudy

    with pytest.raises(RasterError, match=r"a\.tif was changed while it was read; run again when it is whole"):
        remove_from_scene(tmp_path / "a.vrt", tmp_path / "b.tif", FakePipeline(meanwhile), SMALL)
    assert not (tmp_path / "b.tif").exists()


def test_a_scene_that_is_written_over_while_its_scale_is_found_is_told(source, tmp_path, monkeypatch):
    def scale(*arguments: object, real: Any = removal.auto_scale) -> Scaling:
        found: Scaling = real(*arguments)
        write_tif(tmp_path / "other.tif", read_tif(source) // 2 + 10_000)
        source.write_bytes((tmp_path / "other.tif").read_bytes())
        return found

    monkeypatch.setattr(removal, "auto_scale", scale)
    with pytest.raises(RasterError, match=r"a\.tif was changed while it was read"):
        remove_from_scene(source, tmp_path / "b.tif", FakePipeline(draws), SMALL)
    assert not (tmp_path / "b.tif").exists()


@pytest.mark.parametrize("which", ["b.tif", "made_up.tif"])
def test_an_output_that_another_run_finishes_while_this_one_looks_at_the_scene_is_told_at_once(
    which, source, tmp_path, monkeypatch
):
    def scale(*arguments: object, real: Any = removal.auto_scale) -> Scaling:
        (tmp_path / which).write_bytes(b"theirs")
        return real(*arguments)

    monkeypatch.setattr(removal, "auto_scale", scale)
    pipeline = FakePipeline(draws)
    options = replace(SMALL, provenance=tmp_path / "made_up.tif")
    with pytest.raises(OutputError, match="exists already"):
        remove_from_scene(source, tmp_path / "b.tif", pipeline, options)
    assert not pipeline.seen and sorted(names_in(tmp_path)) == sorted(["a.tif", which])


def test_an_output_folder_that_becomes_a_file_is_told(source, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()

    def meanwhile(cloudy: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        if folder.is_dir():
            shutil.rmtree(folder)
            folder.write_bytes(b"")
        return cloudy

    with pytest.raises(OutputError):
        remove_from_scene(source, folder / "b.tif", FakePipeline(meanwhile), SMALL)
    assert folder.read_bytes() == b""


def test_a_folder_that_is_called_as_a_mask_beside_the_output_does_not_undo_it(source, tmp_path):
    (tmp_path / "b.tif.msk").mkdir()
    options = replace(SMALL, provenance=tmp_path / "made_up.tif")
    remove_from_scene(source, tmp_path / "b.tif", FakePipeline(draws), options)
    assert {"b.tif", "made_up.tif", "b.tif.msk"} <= set(names_in(tmp_path))
