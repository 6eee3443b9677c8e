"""The journal: what a killed run leaves, and what the next one makes of it."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from declouder import journal as journals
from declouder.errors import BusyError, OutputError
from declouder.journal import Journal, Layer, journal_path, open_journal, remove_finished_journal, reserved

LAYERS = {"image": Layer("uint16", 2), "w": Layer("uint8", 1)}
OWN_WORTH_KEEPING_S = journals.WORTH_KEEPING_S  # tests change it
KEY = {"seed": 1, "input": {"bytes": 7}}
SIZE = {"windows": 9, "height": 5, "width": 7}


def layers_of(index: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    image = rng.integers(0, 65536, (2, 5, 7)).astype(np.uint16)
    return {"image": image, "w": rng.integers(0, 256, (1, 5, 7)).astype(np.uint8)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return journal_path(tmp_path / "clear.tif")


class Killed(BaseException):
    pass


@pytest.fixture(autouse=True)
def every_journal_is_worth_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "WORTH_KEEPING_S", 0.0)


def stopped_after(path: Path, groups: list[list[int | None]], key: Any = KEY, layers: Any = LAYERS) -> bytes:
    """Leave a journal as a run does that is killed after some groups; negative windows were passed by."""
    with pytest.raises(Killed), open_journal(path, key, layers, **SIZE) as journal:
        for group in groups:
            journal.add({abs(k): None if k < 0 else layers_of(k) for k in group})
        raise Killed
    return path.read_bytes()


def found_in(path: Path, key: Any = KEY, layers: Any = LAYERS) -> tuple[list[int], list[int]]:
    """Return which windows a further run finds finished, and which of them restored."""
    with pytest.raises(Killed), open_journal(path, key, layers, **SIZE) as journal:
        finished = [k for k in range(9) if k in journal]
        restored = [k for k in finished if journal.has_image(k)]
        check(journal, restored)
        raise Killed
    return finished, restored


def check(journal: Journal, indices: list[int]) -> None:
    for k in indices:
        for name, values in layers_of(k).items():
            part = journal.read(k, name, slice(1, 4), slice(2, 7))
            np.testing.assert_array_equal(part, values[:, 1:4, 2:7])


def test_what_an_earlier_run_left_is_kept_however_soon_this_one_stops(path, monkeypatch):
    stopped_after(path, [[0], [1]])
    monkeypatch.setattr(journals, "WORTH_KEEPING_S", 60.0)
    with pytest.raises(Killed), open_journal(path, KEY, LAYERS, **SIZE):
        raise Killed
    assert found_in(path) == ([0, 1], [0, 1])


def test_what_was_added_is_read_back_and_found_by_the_next_run(path):
    stopped_after(path, [[0], [-1, 2], [5, 3]])
    assert found_in(path) == ([0, 1, 2, 3, 5], [0, 2, 3, 5])


def test_a_journal_is_deleted_when_all_is_done_and_when_it_is_not_worth_a_file(path, monkeypatch):
    with open_journal(path, KEY, LAYERS, **SIZE) as journal:
        journal.add({0: layers_of(0)})
    assert not path.exists()
    monkeypatch.setattr(journals, "WORTH_KEEPING_S", 60.0)
    with pytest.raises(Killed), open_journal(path, KEY, LAYERS, **SIZE) as journal:
        journal.add({0: layers_of(0)})
        raise Killed
    assert not path.exists()


def test_a_journal_torn_anywhere_gives_back_the_whole_groups_before_the_tear(path):
    whole = stopped_after(path, [[0, 1], [-2], [3, 4, 5]])
    seen = set()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        finished, _ = found_in(path)
        assert finished in ([], [0, 1], [0, 1, 2], [0, 1, 2, 3, 4, 5])
        seen.add(len(finished))
    assert seen == {0, 2, 3, 6}


def test_no_changed_byte_is_taken_for_a_finished_window(path):
    whole = stopped_after(path, [[0], [1]])
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 0x41
        path.write_bytes(damaged)
        assert found_in(path)[0] in ([], [0])  # and what is found is read back right


def test_records_behind_a_tear_do_not_come_back_once_new_ones_lie_before_them(path):
    whole = bytearray(stopped_after(path, [[0], [1], [2], [3]]))
    record = (len(whole) - path.read_bytes().index(struct.pack("<II", 0, 0))) // 4
    whole[-2 * record - 1] ^= 0x41  # the last byte of window 1
    path.write_bytes(whole)
    stopped_after(path, [[4]])
    assert found_in(path)[0] == [0, 4]


@pytest.mark.parametrize("groups", [[[0, 1], [0]], [[0], [1, 0]]])
def test_a_window_that_is_there_twice_ends_what_is_believed(groups, path):
    stopped_after(path, groups)
    assert found_in(path)[0] == sorted(groups[0])


def test_records_that_were_torn_out_of_their_group_are_not_believed(path):
    whole = stopped_after(path, [[0, 1, 2], [3]])
    start = whole.index(struct.pack("<II", 0, 2))
    record = (len(whole) - start) // 4
    path.write_bytes(whole[: start + record] + whole[start + 2 * record :])  # without window 1
    assert found_in(path)[0] == []


def test_a_continued_journal_goes_on_after_the_tear(path):
    whole = stopped_after(path, [[0], [1]])
    path.write_bytes(whole[:-3])
    stopped_after(path, [[1], [2]])
    assert found_in(path) == ([0, 1, 2], [0, 1, 2])


@pytest.mark.parametrize(
    ("key", "layers", "words"),
    [
        ({**KEY, "seed": 2}, LAYERS, "another seed"),
        ({**KEY, "input": {"bytes": 8}}, LAYERS, "another input"),
        (KEY, {"image": Layer("float32", 2), "w": Layer("uint8", 1)}, "another layout"),
        (KEY, {**LAYERS, "spread": Layer("uint8", 1)}, "was made without spread"),
        (KEY, {name: LAYERS[name] for name in ("image",)}, "was made with w"),
    ],
)
def test_a_journal_of_another_run_starts_anew_and_says_why(key, layers, words, path, caplog):
    caplog.set_level("INFO", "declouder")
    stopped_after(path, [[0], [1]])
    caplog.clear()
    assert found_in(path, key, layers) == ([], [])
    assert "started anew" in caplog.text and words in caplog.text


def test_a_file_that_is_no_journal_starts_anew(path):
    path.write_bytes(b"something else" * 100)
    assert found_in(path) == ([], [])


def test_a_second_run_on_the_same_output_is_refused_and_does_no_harm(path):
    with open_journal(path, KEY, LAYERS, **SIZE) as journal:
        journal.add({0: layers_of(0)})
        code = (
            "import sys; from pathlib import Path; from declouder.errors import OutputError\n"
            "from declouder.journal import Layer, open_journal\n"
            "try:\n"
            "    with open_journal(Path(sys.argv[1]), {}, {'image': Layer('uint8', 1)},"
            " windows=1, height=1, width=1): pass\n"
            "except OutputError as error: print(error)\n"
        )
        said = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        assert "another run is writing" in said.stdout and "clear.tif" in said.stdout
        check(journal, [0])
        with pytest.raises(OutputError, match="another run"), open_journal(path, KEY, LAYERS, **SIZE):
            pass
    assert not path.exists()


def test_a_link_in_the_journals_place_is_not_followed(path, tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    path.symlink_to(tmp_path / "mine")
    with pytest.raises(OutputError, match="cannot be written"), open_journal(path, KEY, LAYERS, **SIZE):
        pass
    assert (tmp_path / "mine").read_bytes() == b"mine"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_at_the_files_first_moment_leaves_nothing(number, path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, interrupt)
    locked = journals._locked

    def locked_and_interrupted(place: Path) -> int:
        file = locked(place)
        signal.raise_signal(number)
        return file

    monkeypatch.setattr(journals, "_locked", locked_and_interrupted)
    try:
        with pytest.raises(KeyboardInterrupt), open_journal(path, KEY, LAYERS, **SIZE):
            pytest.fail("nothing was interrupted")
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, before)
    assert not path.exists()


def test_handlers_that_are_not_pythons_stay():
    code = (
        "import faulthandler, signal; from declouder.interrupts import ENDING, interrupts_wait\n"
        "for number in ENDING[1:]: faulthandler.register(number)\n"
        "with interrupts_wait(): pass\n"
        "for number in ENDING[1:]: signal.raise_signal(number)\n"
        "print('lives')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "lives\n") and done.stderr.count("most recent call first") >= 2


def test_an_interrupt_while_an_earlier_runs_journal_is_read_keeps_it(path, monkeypatch, caplog):
    before = stopped_after(path, [[0], [1]])

    def interrupt(_: Journal) -> None:
        raise Killed

    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_recover", interrupt)
        with pytest.raises(Killed), open_journal(path, KEY, LAYERS, **SIZE):
            pytest.fail("nothing was interrupted")
    assert path.read_bytes() == before
    assert not caplog.records, "how much is finished is not known yet"
    assert found_in(path) == ([0, 1], [0, 1])


def test_a_journal_can_be_opened_outside_the_main_thread(path):
    raised: list[BaseException] = []

    def work() -> None:
        try:
            stopped_after(path, [[0]])
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert raised == []
    assert found_in(path) == ([0], [0])


def test_a_full_disk_is_an_error_and_keeps_what_is_finished(path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with (
            pytest.raises(OutputError, match="free some space"),
            open_journal(path, KEY, LAYERS, **SIZE) as journal,
        ):
            journal.add({0: layers_of(0)})
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, hard))
            journal.add({1: layers_of(1)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found_in(path) == ([0], [0])


def test_a_link_to_an_output_has_the_same_journal(tmp_path):
    (tmp_path / "link.tif").symlink_to("clear.tif")
    assert (
        journal_path(tmp_path / "link.tif")
        == journal_path(tmp_path / "clear.tif")
        == tmp_path / ".clear.tif.journal"
    )


def test_a_journal_that_becomes_shorter_under_a_run_is_told(path):
    with pytest.raises(OutputError, match="has become shorter"), open_journal(path, KEY, LAYERS, **SIZE) as journal:
        journal.add({0: layers_of(0)})
        os.truncate(path, path.stat().st_size - 20)
        journal.read(0, "w", slice(0, 5), slice(0, 7))


def test_a_file_that_another_run_deletes_before_it_is_locked_is_made_anew(path, monkeypatch):
    locked = []

    def flock(file, how, *, real=fcntl.flock):
        if not locked:
            path.unlink()  # the other run has ended between our two calls
        locked.append(file)
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with open_journal(path, KEY, LAYERS, **SIZE):
        assert path.exists() and len(locked) == 2


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_used(number, path, monkeypatch, caplog):
    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with open_journal(path, KEY, LAYERS, **SIZE) as journal:
        journal.add({0: layers_of(0)})
    assert "has no locks; see that no other run writes the same output" in caplog.text


def test_the_journal_of_a_finished_output_is_removed_and_no_other(path, tmp_path):
    output = tmp_path / "clear.tif"
    stopped_after(path, [[0, 1]])
    remove_finished_journal(output)  # there is no output yet
    assert path.exists()
    output.touch()
    os.utime(output, ns=(0, 0))  # of before: the stopped run was to replace it
    remove_finished_journal(output)
    assert path.exists()
    output.touch()
    with pytest.raises(Killed), open_journal(path, KEY, LAYERS, **SIZE):
        remove_finished_journal(output)  # another run is at it
        assert path.exists()
        raise Killed
    output.touch()
    remove_finished_journal(output)
    assert not path.exists() and output.exists()
    remove_finished_journal(output)


def test_a_journal_that_another_run_began_in_the_place_of_this_ones_stays(path):
    with open_journal(path, KEY, LAYERS, **SIZE) as journal:
        journal.add({0: layers_of(0)})
        path.unlink()
        path.write_text("another run's")
    assert path.read_text() == "another run's"


def test_records_are_checked_piece_by_piece(path, monkeypatch):
    stopped_after(path, [[0], [1]])
    monkeypatch.setattr(journals, "_READ_AT_ONCE", 7)
    with pytest.raises(Killed), open_journal(path, KEY, LAYERS, **SIZE) as journal:
        assert len(journal) == 2
        raise Killed


def test_a_file_that_is_reserved_is_no_other_runs_and_a_journal_there_stays(path, tmp_path):
    output = tmp_path / "clear.tif"
    with reserved(output):
        with pytest.raises(BusyError, match=r"another run is writing .*clear\.tif"), reserved(output):
            pass
        with pytest.raises(BusyError), open_journal(path, KEY, LAYERS, **SIZE):
            pass
    assert not path.exists()
    left = stopped_after(path, [[0]])
    with reserved(output):
        pass
    assert path.read_bytes() == left


def test_a_name_too_long_for_a_journal_is_told_as_such(tmp_path):
    too_long = journal_path(tmp_path / ("x" * 250 + ".tif"))
    with (
        pytest.raises(OutputError, match="give the output a shorter name"),
        open_journal(too_long, KEY, LAYERS, **SIZE),
    ):
        pass


def test_windows_of_another_key_do_not_come_back_behind_a_journal_begun_anew(path):
    stopped_after(path, [[0], [1], [2]])
    other = {**KEY, "seed": 2}  # as long as the other
    stopped_after(path, [[0]], key=other)
    assert found_in(path, key=other) == ([0], [0])


def test_finished_windows_reach_the_disk_every_few_seconds(path, monkeypatch):
    synced, now = [], time.monotonic()
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with open_journal(path, KEY, LAYERS, **SIZE) as journal:
        for seconds, times in ((1, 0), (6, 1), (7, 1), (12, 2)):
            monkeypatch.setattr(time, "monotonic", lambda passed=seconds: now + passed)
            journal.add({seconds % 9: layers_of(0)})
            assert len(synced) == times


def test_a_journal_is_kept_when_it_took_a_minute(path, monkeypatch):
    monkeypatch.setattr(journals, "WORTH_KEEPING_S", OWN_WORTH_KEEPING_S)
    now = time.monotonic()
    for seconds, kept in ((59, False), (61, True)):
        monkeypatch.setattr(time, "monotonic", lambda: now)
        with pytest.raises(Killed), open_journal(path, KEY, LAYERS, **SIZE) as journal:
            journal.add({0: layers_of(0)})
            monkeypatch.setattr(time, "monotonic", lambda passed=seconds: now + passed)
            raise Killed
        assert path.exists() == kept
