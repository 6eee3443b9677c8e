"""Digital numbers to [-1, 1] and back."""

from __future__ import annotations

import math

import numpy as np
import pytest

from declouder.errors import OptionError
from declouder.scaling import Scaling, beside_nodata


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_every_number_of_an_integer_dtype_comes_back_from_the_model_range(dtype):
    limits = np.iinfo(dtype)
    dn = np.arange(limits.min, limits.max + 1, dtype=np.int64).astype(dtype)
    scale = Scaling(float(limits.min), float(limits.max))
    x = scale.to_model(dn)
    assert x.dtype == np.float32 and x.min() == -1 and x.max() == 1
    np.testing.assert_array_equal(scale.to_dn(x, dtype), dn)


@pytest.mark.parametrize(("dtype", "low"), [("uint32", 4e9), ("int32", -2e9), ("float64", 1e12)])
def test_numbers_far_from_zero_keep_apart(dtype, low):
    dn = (low + np.arange(1001)).astype(dtype)
    scale = Scaling(low, low + 1000)
    x = scale.to_model(dn)
    assert x.dtype == np.float32
    np.testing.assert_allclose(scale.to_dn(x, dtype).astype(np.float64), dn.astype(np.float64), rtol=0, atol=1e-3)


def test_full_range_of_a_dtype_starts_at_zero():
    assert Scaling.of_dtype("uint8") == Scaling(0, 255)
    assert Scaling.of_dtype("uint16") == Scaling(0, 65535)
    assert Scaling.of_dtype("float32") == Scaling(0, 1)


def test_values_beyond_the_scale_are_clipped_for_the_model():
    np.testing.assert_array_equal(Scaling(100, 200).to_model(np.array([0, 100, 150, 200, 900])), [-1, -1, 0, 1, 1])


def test_integers_are_rounded_and_kept_in_their_range():
    x = np.array([-3, -1, 0, 1, 3], np.float32)
    np.testing.assert_array_equal(Scaling(0, 255).to_dn(x, "uint8"), [0, 0, 128, 255, 255])


def test_floats_come_back_within_float32():
    dn = np.linspace(-0.2, 1.3, 1001, dtype=np.float32)
    scale = Scaling(-0.5, 1.5)
    np.testing.assert_allclose(scale.to_dn(scale.to_model(dn), "float32"), dn, atol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (math.nan, 1), (0, math.inf), (-math.inf, 1)])
def test_a_scale_that_is_none_is_refused(low, high):
    with pytest.raises(OptionError, match="scale"):
        Scaling(low, high)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("nodata", [0.0, -9999.0, 0.1, float(np.finfo("float32").max), -np.finfo("float32").max])
def test_a_float_that_is_nodata_by_chance_moves_to_the_next_one(dtype, nodata):
    chance = np.array([nodata], dtype)
    dn = np.concatenate([chance, [1]])
    found = beside_nodata(dn.astype(dtype), [nodata])
    assert found.dtype == dtype and found[0] != chance[0] and found[1] == 1 and np.isfinite(found).all()
    assert found[0] == pytest.approx(nodata, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("dtype", "nodata", "found"),
    [
        ("uint8", (0, 1), [2, 2, 2, 254, 255]),
        ("uint8", (255, 254), [0, 1, 2, 253, 253]),
        ("uint8", (-9999, 0), [1, 1, 2, 254, 255]),
        ("uint8", (), [0, 1, 2, 254, 255]),
    ],
)
def test_what_is_one_of_several_nodata_by_chance_moves_beside_all_of_them(dtype, nodata, found):
    assert beside_nodata(np.array([0, 1, 2, 254, 255], dtype), nodata).tolist() == found


@pytest.mark.parametrize("nodata", [math.nan, math.inf, -math.inf])
def test_numbers_that_no_result_can_be_leave_all_as_it_is(nodata):
    dn = np.array([0, 1], np.float32)
    assert beside_nodata(dn, [nodata]).tolist() == [0, 1]


def test_ends_of_a_scale_are_plain_numbers_and_no_number_beside_nodata_is_another_nodata():
    assert type(Scaling(np.float32(1), np.int64(3)).low) is float
    near = float(np.nextafter(np.float32(1), np.float32(0)))
    for nodata in ([1.0, near], [near, 1.0]):
        assert beside_nodata(np.array([1], np.float32), nodata)[0] not in (1.0, near)


def test_the_unit_range_is_that_of_the_model_from_zero_to_one():
    scale, dn = Scaling(100, 300), np.array([0, 100, 150, 300, 999], np.uint16)
    unit = scale.to_unit(dn)
    assert unit.dtype == np.float32 and unit.tolist() == [0, 0, 0.25, 1, 1]
    assert scale.unit_to_dn(unit, "uint16").tolist() == [100, 100, 150, 300, 300]


def test_a_scale_that_float32_cannot_hold_is_refused():
    for low, high in ((0.0, 1e-38), (1e-40, 2e-40)):
        with pytest.raises(OptionError, match="spans less than 1e-37, which float32 cannot tell apart"):
            Scaling(low, high)
    assert Scaling(0, 1e-36).to_model(np.array([5e-37])) == pytest.approx(0, abs=1e-5)
