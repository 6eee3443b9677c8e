"""Some layers compute in other ways on other processors: a test can be of all of them, whatever it runs on."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=["AVX512", "AVX2"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What PyTorch says it computes with."""
    name: str = request.param
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)
    return name
