"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from declouder.errors import OutputError
from declouder.whole_files import (
    lives,
    remove_all_stale_parts,
    remove_stale_parts,
    whole_file,
    whole_files_of,
    whole_folder,
    write_text,
)


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    with whole_file(path) as part:
        part.write_text("new")
        assert not path.exists() and part.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("ours")])
def test_what_breaks_off_leaves_the_earlier_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    told = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(told) as caught, whole_file(path, mend="free some room") as part:
        part.write_text("ne")
        raise error
    if told is OutputError:
        assert str(caught.value) == f"{path} cannot be written (No space left on device); free some room"
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_an_earlier_one_at_the_end(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(RuntimeError), whole_folder(folder) as part:
        part.mkdir()
        (part / "half").touch()
        raise RuntimeError
    assert [path.name for path in folder.iterdir()] == ["old"]
    with whole_folder(folder) as part:
        part.mkdir()
        (part / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [folder]


def test_links_permissions_and_pipes_stay_what_they_are(tmp_path):
    path, link = tmp_path / "real.txt", tmp_path / "link.txt"
    path.write_text("old")
    path.chmod(0o600)
    link.symlink_to(path)
    write_text(link, "new")
    assert link.is_symlink() and path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o600
    write_text(tmp_path / ("x" * 245 + ".txt"), "long")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "passes through")
        assert pipe.is_fifo() and os.read(reader, 100) == b"passes through"
    finally:
        os.close(reader)


def test_standard_output_can_be_written_where_it_is_a_pipe():
    code = "import pathlib, declouder.whole_files as w; w.write_text(pathlib.Path('/dev/stdout'), 'x')"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout == b"x"


def test_a_folder_stays_if_the_new_one_cannot_take_its_place(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(OutputError), whole_folder(folder):
        pass  # nothing was made that could take its place
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old"]


def test_a_folder_stays_where_ctrl_c_comes_while_it_is_replaced(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    renames = []

    def rename(self, target, *, real=Path.rename):
        renames.append(self)
        if len(renames) == 2:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt), whole_folder(folder) as part:
        part.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old"]


def test_a_folder_that_a_killed_process_had_moved_away_comes_back(tmp_path):
    folder = tmp_path / "model"
    gone = f"{2**22 + 1}-7"  # of a process that no system can have
    names = [f".model.{gone}.old", f".model.{gone}.part", f".models.{gone}.old", f".model.v2.{gone}.old"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / name[-4:]).touch()
    with pytest.raises(RuntimeError), whole_folder(folder):
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[2:], "model"])
    assert [path.name for path in folder.iterdir()] == [".old"]


def test_files_of_a_folder_take_the_place_of_their_namesakes_at_the_end(tmp_path):
    folder = tmp_path / "model"
    write = {"a/x": "old", "b": "stays"}
    for name, text in write.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with pytest.raises(RuntimeError), whole_files_of(folder) as part:
        (part / "b").write_text("half")
        raise RuntimeError
    assert (folder / "b").read_text() == "stays"
    with whole_files_of(folder) as part:
        (part / "a").mkdir()
        (part / "a" / "x").write_text("new")
        (part / "c").write_text("new")
        assert (folder / "a" / "x").read_text() == "old"
    assert {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()} == {
        "a/x": "new",
        "b": "stays",
        "c": "new",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_files_go_to_a_folder_within_one_that_is_yet_to_be_made(tmp_path):
    with whole_files_of(tmp_path / "runs" / "one" / "model") as part:
        (part / "x").write_text("new")
    assert (tmp_path / "runs" / "one" / "model" / "x").read_text() == "new"


@pytest.mark.parametrize("fill", [whole_folder, whole_files_of])
def test_weights_can_be_read_by_others_and_a_full_disk_is_told(tmp_path, fill):
    (tmp_path / "new").touch()
    with fill(tmp_path / "model") as part:
        part.mkdir(exist_ok=True)
        save_file({"x": np.zeros(4)}, part / "weights.safetensors")
        (part / "weights.safetensors").chmod(0o600)  # as safetensors leaves it
    assert (tmp_path / "model" / "weights.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode
    refused = pytest.raises(OutputError, match=r"cannot be written \(.*\); free some room")
    with refused, fill(tmp_path / "other", mend="free some room") as part:
        save_file({"x": np.zeros(4)}, part / "none" / "weights.safetensors")
    assert not (tmp_path / "other").exists()


def test_long_names_in_any_script_can_be_written(tmp_path):
    name = "云" * 80 + ".json"  # 245 bytes, of the 255 that a file system takes
    with whole_file(tmp_path / name) as part, whole_file(tmp_path / f"{name}2") as other:
        part.write_text("{}")
        other.write_text("[]")  # the names differ in the end alone
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "{}", f"{name}2": "[]"}


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    path = tmp_path / "last.ckpt"
    path.touch()
    (tmp_path / ".last.ckpt.123-4.part").touch()
    kept = {".other.ckpt.123-4.part", ".last.ckpt.2.123-4.part", ".last.ckpt.notes", "last.ckpt"}
    for name in kept:
        (tmp_path / name).touch()
    remove_stale_parts(path)
    assert {p.name for p in tmp_path.iterdir()} == kept


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"none/a\.txt cannot be written \(No such file or directory\); choose"):
        write_text(tmp_path / "none" / "a.txt", "text")


def test_a_folder_of_a_folder_that_is_yet_to_be_made_can_be_written(tmp_path):
    with whole_folder(tmp_path / "set" / "train") as part:
        part.mkdir(parents=True)
        (part / "a").touch()
    assert (tmp_path / "set" / "train" / "a").exists()


@pytest.mark.parametrize("fill", [whole_folder, whole_files_of])
def test_folders_that_killed_processes_left_are_removed_and_no_living_ones(tmp_path, fill):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [f".set.{dead.pid}-1.{end}" for end in ("part", "old")]
    stay = [f".set.{os.getppid()}-1.part", f".set.{os.getppid()}-1.old", f".set.more.{dead.pid}-1.part"]
    for name in ["set", *left, *stay]:
        (tmp_path / name / "train").mkdir(parents=True)
    with fill(tmp_path / "set") as part:
        part.mkdir(exist_ok=True)
        (part / "a").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*stay, "set"])


def test_what_another_process_moves_away_at_this_moment_is_not_brought_back(tmp_path):
    old = tmp_path / f".set.{os.getppid()}-1.old"
    old.mkdir()
    with whole_folder(tmp_path / "set") as part:
        part.mkdir()
        assert old.exists() and not (tmp_path / "set").exists()


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "a.txt", []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_size, path.exists())))
    write_text(path, "new")
    assert synced == [(3, False)]


def test_a_number_that_no_process_has_is_of_none_that_lives():
    assert not lives(10**30) and not lives(0) and lives(os.getpid())


def test_a_process_that_belongs_to_another_user_lives(monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    assert lives(1)


def test_only_parts_of_this_very_name_are_stale_and_folders_stay(tmp_path):
    (tmp_path / ".aXb.1-2.part").touch()
    (tmp_path / ".a.b.1-3.part").mkdir()
    remove_stale_parts(tmp_path / "a.b")
    assert (tmp_path / ".aXb.1-2.part").exists() and (tmp_path / ".a.b.1-3.part").exists()


def test_a_folder_that_cannot_be_replaced_is_not_lost(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old")
    rename = Path.rename

    def broken(self, target):
        if Path(target).name == "model":
            raise OSError(5, "broken")
        return rename(self, target)

    with pytest.raises(OutputError), whole_folder(folder) as part:
        part.mkdir(exist_ok=True)
        (part / "weights").write_text("new")
        monkeypatch.setattr(Path, "rename", broken)
    assert [path.read_text() for path in tmp_path.rglob("weights")] == ["old"]


def test_parts_of_any_name_are_stale_in_a_folder_of_ones_own(tmp_path):
    for name in (".scores.csv.12-34.part", ".last.ckpt.5-6.part"):
        (tmp_path / name).touch()
    kept = {"scores.csv", ".notes.part", "a.1-2.part"}
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / ".model.1-2.part").mkdir()
    remove_all_stale_parts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, ".model.1-2.part"}
