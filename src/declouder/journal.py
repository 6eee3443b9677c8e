"""The journal of a scene: the finished windows of an unfinished output, so that a killed run can go on.

    with open_journal(journal_path(output), key, layers, windows=9, height=512, width=512) as journal:
        if 0 not in journal: journal.add({0: {"image": restored}})
        rows = journal.read(0, "image", slice(0, 64), slice(0, 512))

The file is a header and records that are only ever appended:

    header   MAGIC, length, JSON (the key: all that the result depends on; the layout), CRC-32
    record   index of the window, windows of its group still to come, length, CRC-32, the layers one after another

After a kill, a power cut or a full disk the tail may be torn: it is cut off at the first record that is not
whole, together with the part of its group before it, so that a continued run forms the same groups as an
uninterrupted one. A window is stored before it is blended with its neighbours, so the order does not matter.
While a run has the journal open it holds a lock on it, which vanishes with the process.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from declouder.errors import BusyError, OutputError
from declouder.interrupts import interrupts_wait
from declouder.locks import locked

log = logging.getLogger(__name__)

MAGIC = b"declouder journal 1\n"
# A journal that took less is not worth a file that the user did not ask for.
WORTH_KEEPING_S = 60.0
_HEADER = struct.Struct("<II")  # length and CRC-32 of the JSON
_RECORD = struct.Struct("<IIQI")  # window, windows of its group to come, length, CRC-32
_MOST_HEADER_BYTES = 2**20
_READ_AT_ONCE = 16 * 2**20
_SYNC_EVERY_S = 5.0  # so much work a power cut may cost


@dataclass(frozen=True)
class Layer:
    """One array that is kept of every window, (bands, height, width) of `dtype`."""

    dtype: str
    bands: int


def journal_path(output: Path) -> Path:
    """Return where the journal of an output lies: beside it, hidden; of a link beside what it points to.

    So its lock keeps out another run on the same file under another name.
    """
    place = output.resolve()
    return place.with_name(f".{place.name}.journal")


def remove_finished_journal(output: Path) -> None:
    """Delete the journal of an output that is complete: a run was killed between naming the one and deleting it.

    One that was written to after the output stays, for it is of a run that was to replace it; so does one that
    another run holds.
    """
    path = journal_path(output)
    try:
        if path.stat(follow_symlinks=False).st_mtime_ns > output.stat().st_mtime_ns:
            return
        file = _locked(path)
    except (OSError, BusyError):
        return
    _unlink(path, file)
    os.close(file)


@contextlib.contextmanager
def open_journal(
    path: Path, key: Mapping[str, Any], layers: Mapping[str, Layer], *, windows: int, height: int, width: int
) -> Iterator[Journal]:
    """Open the journal at `path`, with what a stopped run of the same key left in it.

    It is deleted when the block ends well; after an error or an interrupt it stays if it is worth it.

    Args:
        path: see `journal_path`.
        key: all that the result depends on, as JSON knows it. A journal with another key is begun
            anew; the log tells.
        layers: what is kept of a window, by name.
        windows: how many there are.
        height: of what is kept of each window; one at the scene's edge may be smaller and is filled up.
        width: the same.

    Raises:
        OutputError: if it cannot be written; BusyError if another run holds it.
    """
    header = {
        "key": dict(key),
        "layers": {name: [layer.dtype, layer.bands] for name, layer in layers.items()},
        "windows": [windows, height, width],
    }
    journal: Journal | None = None
    keep = False
    try:
        # An interrupt between the file's first moment and `journal` would leave it behind.
        with _writing(path), interrupts_wait():
            journal = Journal(path, _locked(path), layers, windows=windows, height=height, width=width)
        with _writing(path):
            journal.begin(header)
        yield journal
    except BaseException:
        keep = journal is not None and journal.worth_keeping
        if journal is not None and keep and len(journal):
            log.warning(
                "%d of %d windows are finished and kept in %s; the same command goes on from there",
                *(len(journal), windows, path),
            )
        raise
    finally:
        if journal is not None:
            if not keep:
                journal.remove()
            journal.close()


@contextlib.contextmanager
def reserved(output: Path) -> Iterator[None]:
    """Keep other runs from writing a file that has no journal of its own, by the lock that one would have.

    Raises:
        OutputError: if the lock's file cannot be made; BusyError if another run writes that output.
    """
    path = journal_path(output)
    file: int | None = None
    try:
        with _writing(path), interrupts_wait():
            file = _locked(path)
        yield
    finally:
        if file is not None:
            if os.fstat(file).st_size == 0:  # else a stopped run on that output left it
                _unlink(path, file)
            os.close(file)


class Journal:
    """The finished windows; made by `open_journal`.

    Attributes:
        height: of what is kept of each window.
        width: the same.
    """

    def __init__(
        self, path: Path, file: int, layers: Mapping[str, Layer], *, windows: int, height: int, width: int
    ) -> None:
        self.path = path
        self._file = file
        self._windows, self.height, self.width = windows, height, width
        self._layers = dict(layers)
        self._begin_of: dict[str, int] = {}  # of each layer in a payload
        self._payload_bytes = 0
        for name, layer in layers.items():
            self._begin_of[name] = self._payload_bytes
            self._payload_bytes += layer.bands * height * width * np.dtype(layer.dtype).itemsize
        self._offsets: dict[int, int | None] = {}  # of each finished window's payload
        self._end = 0
        self._started = self._synced = time.monotonic()
        self._continued = False
        # Until `begin` has looked, what an earlier run left is nobody's to delete.
        self._unread = os.fstat(file).st_size > 0

    def close(self) -> None:
        """Give up the file and its lock."""
        os.close(self._file)

    def remove(self) -> None:
        """Delete the file, by its name."""
        _unlink(self.path, self._file)

    def __contains__(self, index: int) -> bool:
        return index in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def has_image(self, index: int) -> bool:
        """Return whether a window was restored; False for one that is unfinished or was passed by."""
        return self._offsets.get(index) is not None

    @property
    def restored(self) -> int:
        """How many windows went through the model."""
        return sum(offset is not None for offset in self._offsets.values())

    @property
    def worth_keeping(self) -> bool:
        """Whether losing it would cost more than a minute, or what an earlier run left."""
        if self._unread:
            return True
        return bool(self._offsets) and (self._continued or time.monotonic() - self._started >= WORTH_KEEPING_S)

    def begin(self, header: Mapping[str, Any]) -> None:
        """Take over what an earlier run with the same header left, or start anew."""
        packed = json.dumps(header, sort_keys=True).encode()
        found = self._found_header()
        if found is not None and found == packed:
            self._recover()
            self._continued, self._unread = bool(self._offsets), False
            if self._offsets:
                log.info("continued: %d of %d windows were finished", len(self), self._windows)
            return
        if os.fstat(self._file).st_size:
            log.info("started anew: what a stopped run left in %s %s", self.path, _difference(found, header))
        self._unread = False
        start = MAGIC + _HEADER.pack(len(packed), zlib.crc32(packed)) + packed
        os.ftruncate(self._file, 0)
        _write_at(self._file, start, 0)
        self._end = len(start)

    def add(self, group: Mapping[int, Mapping[str, NDArray[Any]] | None]) -> None:
        """Append finished windows, all or none of which a continued run will find.

        Args:
            group: by window; the layers, (bands, height, width) each, or None for a window that was passed by.

        Raises:
            OutputError: if the disk does not take them.
        """
        parts: list[bytes] = []
        offsets: dict[int, int | None] = {}
        position = self._end
        for to_come, (index, arrays) in zip(reversed(range(len(group))), group.items(), strict=True):
            payload = b"" if arrays is None else self._packed(arrays)
            head = _RECORD.pack(index, to_come, len(payload), 0)[:-4]
            parts += [head, struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))), payload]
            offsets[index] = position + _RECORD.size if payload else None
            position += _RECORD.size + len(payload)
        with _writing(self.path):
            _write_at(self._file, b"".join(parts), self._end)
            if time.monotonic() - self._synced > _SYNC_EVERY_S:
                os.fsync(self._file)
                self._synced = time.monotonic()
                if os.fstat(self._file).st_nlink == 0:
                    raise OutputError(f"{self.path} was removed in the middle of the run; run it again")
        self._end = position
        self._offsets |= offsets

    def read(self, index: int, layer: str, rows: slice, cols: slice) -> NDArray[Any]:
        """Return part of a restored window's layer, (bands, rows, cols); the slices count from its corner."""
        offset = self._offsets[index]
        assert offset is not None, f"window {index} was passed by"
        kind = np.dtype(self._layers[layer].dtype)
        row_bytes = self.width * kind.itemsize
        bands = []
        for band in range(self._layers[layer].bands):
            begin = offset + self._begin_of[layer] + (band * self.height + rows.start) * row_bytes
            data = self._read_at((rows.stop - rows.start) * row_bytes, begin)
            bands.append(np.frombuffer(data, kind).reshape(-1, self.width)[:, cols])
        return np.stack(bands)

    def _read_at(self, length: int, begin: int) -> bytes:
        try:
            data = os.pread(self._file, length, begin)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be read ({error.strerror}); is its disk still there?") from error
        if len(data) < length:
            raise OutputError(f"{self.path} has become shorter; leave it alone while the run is at work")
        return data

    def _packed(self, arrays: Mapping[str, NDArray[Any]]) -> bytes:
        for name, layer in self._layers.items():
            wanted = (layer.bands, self.height, self.width)
            assert arrays[name].shape == wanted and arrays[name].dtype == layer.dtype, name
        return b"".join(np.ascontiguousarray(arrays[name]).tobytes() for name in self._layers)

    def _found_header(self) -> bytes | None:
        """Return the JSON of the journal that is there, or None if it is none of ours or torn."""
        start = os.pread(self._file, len(MAGIC) + _HEADER.size, 0)
        if not start.startswith(MAGIC) or len(start) < len(MAGIC) + _HEADER.size:
            return None
        length, checksum = _HEADER.unpack(start[len(MAGIC) :])
        if length > _MOST_HEADER_BYTES:
            return None
        packed = os.pread(self._file, length, len(start))
        self._end = len(start) + length
        return packed if len(packed) == length and zlib.crc32(packed) == checksum else None

    def _recover(self) -> None:
        """Find the records of all whole groups, and cut off what comes after them."""
        position = self._end
        group: dict[int, int | None] = {}
        wanted: int | None = None  # windows of this group to come
        while len(head := os.pread(self._file, _RECORD.size, position)) == _RECORD.size:
            index, to_come, length, checksum = _RECORD.unpack(head)
            known = index < self._windows and index not in self._offsets and index not in group
            if not known or length not in (0, self._payload_bytes) or wanted not in (None, to_come):
                break
            if _checksum_at(self._file, position + _RECORD.size, length, zlib.crc32(head[:-4])) != checksum:
                break
            group[index] = position + _RECORD.size if length else None
            position += _RECORD.size + length
            wanted = to_come - 1
            if to_come == 0:
                self._offsets |= group
                self._end, group, wanted = position, {}, None
        os.ftruncate(self._file, self._end)


def _unlink(path: Path, file: int) -> None:
    """Delete an open file if that can be done: its folder may be gone, and an error of that would hide why.

    Where somebody has deleted it before, another run may have begun one of that name: that stays.
    """
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(file), path.stat(follow_symlinks=False)):
            path.unlink()


def _locked(path: Path) -> int:
    """Open and lock a journal; return its descriptor.

    Raises:
        BusyError: if another process has it locked.
    """
    try:
        return locked(path, doubt="see that no other run writes the same output")
    except BlockingIOError:
        output = path.name.removeprefix(".").removesuffix(".journal")
        raise BusyError(
            f"another run is writing {path.with_name(output)} at this moment (it holds {path.name}); "
            "wait for it, or give another output"
        ) from None


def _difference(found: bytes | None, header: Mapping[str, Any]) -> str:
    """Say why a journal does not fit."""
    try:
        old = json.loads(found or b"null")
        before = dict(old["key"])
    except (ValueError, TypeError, KeyError):
        return "cannot be read"
    now = header["key"]
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if names:
        return f"was made with another {', '.join(names)}"
    kept, wanted = (set(each.get("layers") or ()) for each in (old, header))
    if kept != wanted:
        told = [f"without {', '.join(sorted(wanted - kept))}"] if wanted - kept else []
        return f"was made {' and '.join(told + [f'with {name}' for name in sorted(kept - wanted)])}"
    return "was made with another layout"


def _checksum_at(file: int, position: int, length: int, checksum: int) -> int | None:
    """Return the CRC-32 that goes on from `checksum` over part of a file; None if the file ends before."""
    while length:
        data = os.pread(file, min(length, _READ_AT_ONCE), position)  # of over 2 GiB Linux returns less
        if not data:
            return None
        checksum = zlib.crc32(data, checksum)
        position, length = position + len(data), length - len(data)
    return checksum


def _write_at(file: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(file, view, position)
        view, position = view[count:], position + count


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        mend = "free some space and run the same command again" if full else "is the folder read-only?"
        if error.errno == errno.ENAMETOOLONG:
            mend = "give the output a shorter name"
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); {mend}") from error
