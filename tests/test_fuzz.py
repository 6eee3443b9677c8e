"""Spoilt files end in success or in one clear line; the long run is benchmarks/fuzz.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzzing import KINDS, cases, outcome

FEW = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "model"])
@FEW
@given(data=st.data())
def test_a_spoilt_file_ends_in_success_or_one_clear_line_and_leaves_nothing(kind, data):
    case = data.draw(cases((kind,)))
    with tempfile.TemporaryDirectory() as folder:
        assert outcome(case, Path(folder))


@pytest.mark.filterwarnings("ignore")
@settings(FEW, max_examples=10)
@given(case=cases(("model",)))
def test_a_spoilt_model_config_ends_in_a_pipeline_or_one_clear_line(case, model_folder):
    with tempfile.TemporaryDirectory() as folder:
        assert outcome(case, Path(folder), model_folder)
