"""Images that nothing may be learnt from."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path


class Withheld:
    """Images of test, excluded and held-out pairs, known wherever they lie: by place, and as copies by their bytes.

    Args:
        paths: of the images.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._places = {path.resolve() for path in paths}
        self._of_size: dict[int, list[Path]] = defaultdict(list)
        for place in self._places:
            self._of_size[place.stat().st_size].append(place)
        self._digests: dict[int, set[bytes]] = {}  # of those of one size, once they are asked for

    def holds(self, path: Path) -> bool:
        """Tell whether an image is one of them, or a copy of one."""
        if path.resolve() in self._places:
            return True
        size = path.stat().st_size
        if size not in self._of_size:
            return False
        if size not in self._digests:
            self._digests[size] = set(map(_digest, self._of_size[size]))
        return _digest(path) in self._digests[size]


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
