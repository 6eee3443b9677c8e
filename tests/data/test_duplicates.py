import io

import numpy as np
import pytest
from PIL import Image

from declouder.data.duplicates import WAYS, find_duplicates, look_of
from declouder.data.terrain import make_terrain


def ground(seed: int, size: int = 128) -> np.ndarray:
    image = make_terrain(np.random.default_rng(seed), size, size)
    return np.rint(255 * image).astype(np.uint8).transpose(1, 2, 0)


def as_jpeg(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


COPIES = {
    "the same pixels": lambda image: image,
    "a JPEG of it": as_jpeg,
    "half its size": lambda image: np.asarray(Image.fromarray(image).resize((64, 64))),
    "a darker one": lambda image: (image * 0.8).astype(np.uint8),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_found_however_they_were_stored(how):
    images = [ground(seed) for seed in range(6)]
    looks = [look_of(number, image) for number, image in enumerate(images)]
    (found,) = find_duplicates([*looks, look_of("copy", COPIES[how](images[3]))])
    assert (found.first, found.second) == (3, "copy")
    assert found.correlation > 0.9
    assert found.way == ""


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_is_found_however_it_was_turned_and_mirrored(way):
    turns, mirrored = WAYS[way]
    images = [ground(seed) for seed in range(6)]
    copy = np.rot90(images[3][:, ::-1] if mirrored else images[3], turns)
    looks = [look_of(number, image) for number, image in enumerate(images)]
    (found,) = find_duplicates([*looks, look_of("copy", as_jpeg(np.ascontiguousarray(copy)))])
    assert (found.first, found.second, found.way) == (3, "copy", way)


def test_different_ground_is_no_duplicate_even_where_hashes_are_alike():
    assert find_duplicates(look_of(seed, ground(seed)) for seed in range(40)) == []


def test_ground_that_is_only_like_another_is_no_duplicate():
    image = ground(4)
    noise = np.random.default_rng(0).normal(0, 16, (16, 16, 3)).repeat(8, 0).repeat(8, 1)  # a correlation of 0.87
    other = np.clip(image + noise, 0, 255).astype(np.uint8)
    assert find_duplicates([look_of(0, image), look_of(1, other)]) == []


def test_ground_that_overlaps_in_part_is_not_found():
    wide = ground(0, 160)
    assert find_duplicates([look_of("left", wide[:128, :128]), look_of("right", wide[:128, 32:])]) == []


def test_flat_images_are_duplicates_only_as_copies():
    generator = np.random.default_rng(0)
    sea = [np.clip(generator.normal(60 + 3 * n, 1, (64, 64, 3)), 0, 255).astype(np.uint8) for n in range(4)]
    found = find_duplicates([look_of(n, image) for n, image in enumerate([*sea, sea[2]])])
    assert [(duplicate.first, duplicate.second) for duplicate in found] == [(2, 4)]
    assert np.isnan(found[0].correlation)


def test_fewer_than_two_images_have_no_duplicates():
    assert find_duplicates([]) == find_duplicates([look_of(0, ground(0))]) == []


def test_a_copy_of_which_much_is_noise_is_found():
    """Its hash differs in more than a few bits, which is what candidates are allowed."""
    image = ground(4)
    noise = np.random.default_rng(0).normal(0, 8, (16, 16, 3)).repeat(8, 0).repeat(8, 1)
    copy = np.clip(image + noise, 0, 255).astype(np.uint8)
    one, other = look_of(0, image), look_of(1, copy)
    assert (one.signs[0] != other.signs[0]).sum() > 6
    (found,) = find_duplicates([one, other])
    assert found.correlation > 0.9
