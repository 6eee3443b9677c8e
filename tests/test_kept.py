"""The images that are kept to look at: of what they are made, and how they are stretched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from declouder.errors import OutputError
from declouder.kept import _HEADING, FULL_SCALE, OWNER, check_owner, keep_images, owner_of, read_kept


def kept(folder: Path, clear: np.ndarray, names: tuple[str, ...], **maps: np.ndarray) -> None:
    assert keep_images(folder, "1", {"clear": clear}, maps, names, owner="me") == ["clear", *maps]


def test_sixteen_bits_are_stretched_from_the_first_to_the_last_of_what_is_there(tmp_path: Path) -> None:
    clear = np.linspace(1000, 3000, 40 * 50).reshape(40, 50, 1)
    clear[0, :3] = 60000  # a few saturated pixels darken nothing
    kept(tmp_path, clear.astype(np.uint16), ("grey",))
    shown = read_kept(tmp_path, "1", "clear").astype(float)
    low, high = np.percentile(clear.astype(np.uint16), (0.5, 99.5))
    np.testing.assert_allclose(shown, ((clear[..., 0] - low) / (high - low) * 255).clip(0, 255), atol=0.7)
    assert shown[0, 0] == 255 and shown[-1, -1] == 255 and shown[20].mean() == pytest.approx(127, abs=4)


def test_eight_bits_are_shown_as_they_are(tmp_path: Path) -> None:
    clear = np.arange(40, 90, dtype=np.uint8).reshape(5, 10, 1)
    kept(tmp_path, clear, ("grey",))
    np.testing.assert_array_equal(read_kept(tmp_path, "1", "clear"), clear[..., 0])


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (("nir", "blue", "green", "red"), [3, 2, 1]),
        (("red", "green", "blue", "nir"), [0, 1, 2]),
        (("a", "b", "c", "d"), [0, 1, 2]),
    ],
)
def test_red_green_and_blue_are_shown_where_they_are(names, places, tmp_path, rng):
    clear = rng.integers(0, 256, (6, 7, 4), dtype=np.uint8)
    kept(tmp_path, clear, names)
    np.testing.assert_array_equal(read_kept(tmp_path, "1", "clear"), clear[..., places])


def test_of_two_bands_the_first_is_shown(tmp_path, rng):
    clear = rng.integers(0, 256, (6, 7, 2), dtype=np.uint8)
    kept(tmp_path, clear, ("nir", "swir"))
    np.testing.assert_array_equal(read_kept(tmp_path, "1", "clear"), clear[..., 0])


def test_error_and_spread_are_shown_by_their_root_and_w_as_it_is_all_cut_at_white(tmp_path: Path) -> None:
    share = np.array([[0, 0.25, 1, 2.0]])
    maps = {kind: share * white for kind, white in FULL_SCALE.items()}
    kept(tmp_path, np.zeros((1, 4, 1), np.uint8), ("grey",), **maps)
    for kind, quarter in (("error", 128), ("spread", 128), ("w", 64)):
        assert read_kept(tmp_path, "1", kind).tolist() == [[0, quarter, 255, 255]], kind


def test_images_of_another_evaluation_or_of_nobody_are_not_written_over(tmp_path):
    (tmp_path / OWNER).write_text(f"{_HEADING}\nother\n")
    with pytest.raises(OutputError):
        check_owner(tmp_path, "me", overwrite=False)
    (tmp_path / OWNER).write_text("notes of somebody\nme\n")
    assert owner_of(tmp_path) is None
    (tmp_path / OWNER).unlink()
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "restored.png").touch()
    with pytest.raises(OutputError):
        check_owner(tmp_path, "me", overwrite=False)


@pytest.mark.filterwarnings("error")
def test_a_flat_image_of_16_bits_is_shown(tmp_path):
    keep_images(tmp_path, "1", {"clear": np.full((4, 4, 1), 9000, np.uint16)}, {}, ("grey",), owner="me")
    assert not read_kept(tmp_path, "1", "clear").any()
