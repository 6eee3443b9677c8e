"""What a command does for its process: what it imports comes quickly, and is the same as without."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from declouder.cli.process import _nobody_needs, import_to_stay


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with a module that says whether the garbage collector was on while it was imported."""
    name = "big_package_of_a_test"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "part.py").write_text('"""A part."""\nimport gc\n\nWAS_ON = gc.isenabled()\n')
    monkeypatch.syspath_prepend(tmp_path)
    for module in (name, f"{name}.part"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return name


@pytest.mark.parametrize("is_on", [True, False])
def test_the_garbage_collector_waits_while_a_large_module_is_imported(package: str, is_on: bool) -> None:
    was_on = gc.isenabled()
    try:
        (gc.enable if is_on else gc.disable)()
        import_to_stay(f"{package}.part")
        assert sys.modules[f"{package}.part"].WAS_ON is False
        assert gc.isenabled() is is_on
        with pytest.raises(ModuleNotFoundError):
            import_to_stay(f"{package}.other")
        assert gc.isenabled() is is_on
    finally:
        gc.unfreeze()
        (gc.enable if was_on else gc.disable)()


def test_of_a_module_that_is_there_nothing_is_kept() -> None:
    before = gc.get_freeze_count()
    import_to_stay("declouder.errors")
    assert gc.get_freeze_count() == before


def test_a_module_that_nobody_needs_is_loaded_once_something_is_taken_from_it(package: str) -> None:
    part = f"{package}.part"
    with _nobody_needs(part):
        stand_in = sys.modules[part]
        assert importlib.import_module(part) is stand_in
        assert stand_in.__file__ is not None and stand_in.__file__.endswith("part.py")
        assert not hasattr(stand_in, "__version__") and sys.modules[part] is stand_in
        assert stand_in.WAS_ON in (True, False)
        loaded = sys.modules[part]
        assert loaded is not stand_in
        assert stand_in.WAS_ON is loaded.WAS_ON
        assert sys.modules[part] is loaded
    assert sys.modules[part] is loaded
    with _nobody_needs(part):
        assert sys.modules[part] is loaded


def test_afterwards_a_module_that_nobody_needed_is_imported_as_ever(package: str) -> None:
    part = f"{package}.part"
    with pytest.raises(KeyboardInterrupt), _nobody_needs(part):
        held = importlib.import_module(part)
        raise KeyboardInterrupt
    assert part not in sys.modules
    found = importlib.import_module(part)
    assert found is not held and held.WAS_ON is found.WAS_ON
    with pytest.raises(AttributeError):
        _ = held.nothing
    assert sys.modules[part] is found


def test_a_module_that_is_not_there_stays_missing(package: str) -> None:
    with _nobody_needs(f"{package}.other"), pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{package}.other")


def test_a_command_loads_no_statistics_until_somebody_asks_for_them() -> None:
    code = (
        "import gc, sys\n"
        "from declouder.cli.process import import_pipeline\n"
        "import_pipeline()\n"
        "assert 'declouder.pipeline' in sys.modules and gc.isenabled() and gc.get_freeze_count() > 100_000\n"
        "assert not [name for name in sys.modules if name.startswith('scipy.stats')]\n"
        "from scipy.stats.distributions import norm\n"
        "import scipy.stats\n"
        "from diffusers.schedulers import scheduling_euler_discrete\n"
        "assert scipy.stats.norm is norm and norm.cdf(0) == 0.5\n"
        "assert scheduling_euler_discrete.scipy.stats.beta is scipy.stats.beta\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
