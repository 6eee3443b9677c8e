"""Windows on the workers of a cluster: the same pixels as here, whatever happens to the workers."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import FrozenDict

from conftest import names_in, read_tif, write_tif
from declouder import cli
from declouder.errors import ModelError, OptionError
from declouder.interrupts import children_heed_no_interrupt
from declouder.mosaic import Window
from declouder.pipeline import CloudRemovalPipeline
from declouder.scaling import Scaling
from declouder.scene import SceneOptions, remove_from_scene
from declouder.scene.inference import Part, layers_of, threads_of

distributed = pytest.importorskip("distributed")
cloudpickle = pytest.importorskip("cloudpickle")

from declouder.cluster import Cluster, check_cluster_name, finish_scenes, open_cluster, opening, with_model  # noqa: E402
from declouder.cluster.engine import _result  # noqa: E402
from declouder.cluster.opening import _agreed  # noqa: E402
from declouder.cluster.worker import Facts, ModelPlugin, Work, facts  # noqa: E402

SMALL = SceneOptions(window_px=64, overlap_px=16, steps=1, seed=4, threads=1)
# Workers cannot import this file: its classes travel as they are.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Pretended:
    """Behaves as a pipeline on a worker; what `happens` is called with each batch, (B, C, h, w) in [0, 1]."""

    def __init__(self, happens: Any) -> None:
        self.happens = happens
        self.config = FrozenDict(bands=["red", "green", "blue"], num_inference_steps=1)
        self.components: dict[str, Any] = {}
        self.scheduler = DDIMScheduler()
        self.device = torch.device("cpu")
        self.computing_device = self.device
        self.steps_dtype, self.steps_in_bfloat16 = torch.float32, False

    def to(self, _device: str) -> Pretended:
        return self

    def __call__(self, cloudy: torch.Tensor, **_: Any) -> SimpleNamespace:
        self.happens(cloudy)
        return SimpleNamespace(images=cloudy * 0.5, weights=cloudy, reference=cloudy)


def two_workers() -> Any:
    """Return a cluster of two processes on this machine, to be closed by the caller."""
    return distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    )


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    with two_workers() as found:
        yield found


@pytest.fixture(scope="module")
def client(processes: Any) -> Iterator[Any]:
    with distributed.Client(processes) as found:
        yield found


@pytest.fixture
def mortal_client() -> Iterator[Any]:
    """Workers of one test alone, which may kill them: Dask does not always bring back a killed one."""
    with two_workers() as processes, distributed.Client(processes) as found:
        yield found


@pytest.fixture(scope="module")
def pipeline(model_folder: Path) -> CloudRemovalPipeline:
    found = CloudRemovalPipeline.from_pretrained(model_folder)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture
def source(tmp_path: Path, rng: np.random.Generator) -> Path:
    return write_tif(tmp_path / "a.tif", rng.integers(0, 9000, (3, 150, 200), dtype=np.uint16))


def both(client: Any) -> dict[str, int]:
    """Return the processes of the two workers, once both are there."""
    client.wait_for_workers(2, timeout=120)
    found: dict[str, int] = client.run(os.getpid)
    return found


def test_a_scene_on_a_cluster_has_the_bytes_of_one_made_here(client, pipeline, source, tmp_path):
    both(client)
    options = replace(SMALL, batch=3)
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    said = {folder: replace(options, provenance=folder / "said.tif", samples=2) for folder in (here, there)}
    remove_from_scene(source, here / "b.tif", pipeline, said[here])
    with with_model(client, pipeline) as cluster:
        report = remove_from_scene(source, there / "b.tif", pipeline, said[there], engine=cluster.engine)
    assert report.windows == 20 and names_in(there) == ["b.tif", "said.tif"]
    for name in ("b.tif", "said.tif"):
        assert (here / name).read_bytes() == (there / name).read_bytes()


def test_a_worker_that_is_killed_costs_its_windows_only_and_no_byte(mortal_client, pipeline, source, tmp_path):
    killed = next(iter(both(mortal_client).values()))
    remove_from_scene(source, tmp_path / "here.tif", pipeline, SMALL)
    shown = []

    def progress(done: int, total: int) -> None:
        shown.append(done)
        if len(shown) == 2:
            os.kill(killed, signal.SIGKILL)

    with with_model(mortal_client, pipeline) as cluster:
        report = remove_from_scene(
            source, tmp_path / "there.tif", pipeline, SMALL, engine=cluster.engine, progress=progress
        )
    assert shown == list(range(1, report.windows + 1))
    assert killed not in mortal_client.run(os.getpid).values()
    assert (tmp_path / "here.tif").read_bytes() == (tmp_path / "there.tif").read_bytes()


def test_many_scenes_run_side_by_side_and_come_back_in_order(client, pipeline, tmp_path, rng):
    both(client)
    sources = [
        write_tif(tmp_path / f"{k}.tif", rng.integers(0, 255, (3, 40, 50 + k), dtype=np.uint8)) for k in range(5)
    ]
    with with_model(client, pipeline) as cluster:

        def work(source: Path) -> Path:
            output = source.with_name(f"clear_{source.name}")
            return remove_from_scene(source, output, pipeline, SMALL, engine=cluster.engine).output

        outputs = finish_scenes(cluster, sources, work, groups=lambda source: 1)
    assert [path.name for path in outputs] == [f"clear_{k}.tif" for k in range(5)]
    for source, output in zip(sources, outputs, strict=True):
        remove_from_scene(source, tmp_path / "here.tif", pipeline, replace(SMALL, overwrite=True))
        np.testing.assert_array_equal(read_tif(output), read_tif(tmp_path / "here.tif"))


def test_the_groups_that_are_out_do_not_grow_with_the_scene(client, pipeline):
    from declouder.mosaic import plan_windows
    from declouder.scene.inference import Part, layers_of

    both(client)
    windows = plan_windows(1000, 1000, 64, 16)
    asked, most = 0, 0

    def groups() -> Iterator[dict[int, Any]]:
        nonlocal asked
        for index, window in enumerate(windows[:30]):
            asked += 1
            yield {index: Part(window, np.zeros((3, window.height, window.width), np.float32), window)}

    with with_model(client, pipeline) as cluster:
        engine = cluster.engine(
            replace(SMALL, steps=0), layers_of(SMALL, bands=3, dtype="uint16", scale=Scaling(0, 9000))
        )
        for done, _ in enumerate(engine.finish(groups())):
            most = max(most, asked - done)
        assert asked == 30
        # Those out, and the next one, which waits here.
        assert most <= cluster.most_out + 1


def test_a_window_that_fails_on_a_worker_fails_the_scene_and_names_its_place(client, tmp_path):
    def refuses_white(cloudy: torch.Tensor) -> None:
        if cloudy.max() > 0.99:
            raise RuntimeError("kernel launch failed")

    both(client)
    dn = np.full((3, 250, 300), 90, np.uint8)
    dn[:, 180:182, 200:202] = 255
    source = write_tif(tmp_path / "a.tif", dn)
    pretended = Pretended(refuses_white)
    with with_model(client, pretended) as cluster:
        with pytest.raises(ModelError, match=r"row 160, column 160.*kernel launch failed"):
            remove_from_scene(source, tmp_path / "b.tif", pretended, SMALL, engine=cluster.engine)
        # Nothing of the failed scene is left to do, and the next one finds its room.
        assert cluster._out == 0
    assert names_in(tmp_path) == ["a.tif"]


def test_a_window_over_which_every_worker_dies_is_an_error_and_no_endless_loop(mortal_client, tmp_path):
    def deadly(cloudy: torch.Tensor) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    both(mortal_client)
    source = write_tif(tmp_path / "a.tif", np.full((3, 30, 30), 90, np.uint8))
    pretended = Pretended(deadly)
    mortal_client.cluster.scheduler.allowed_failures = 1
    with (
        with_model(mortal_client, pretended) as cluster,
        pytest.raises(ModelError, match="2 workers died one after another over the window at row 0, column 0"),
    ):
        remove_from_scene(source, tmp_path / "b.tif", pretended, SMALL, engine=cluster.engine)
    assert names_in(tmp_path) == ["a.tif"]


def test_an_error_in_one_of_many_scenes_stops_the_others_and_leaves_no_output(client, tmp_path):
    def slow_and_refuses_white(cloudy: torch.Tensor) -> None:
        import time

        time.sleep(0.2)
        if cloudy.max() > 0.99:
            raise RuntimeError("kernel launch failed")

    both(client)
    large = write_tif(tmp_path / "large.tif", np.full((3, 600, 600), 90, np.uint8))
    white = write_tif(tmp_path / "white.tif", np.full((3, 30, 30), 255, np.uint8))
    pretended = Pretended(slow_and_refuses_white)
    with with_model(client, pretended) as cluster:

        def work(source: Path) -> None:
            output = source.with_name(f"clear_{source.name}")
            remove_from_scene(source, output, pretended, SMALL, engine=cluster.engine)

        with pytest.raises(ModelError, match="row 0, column 0"):
            finish_scenes(cluster, [large, white], work, groups=lambda source: 1)
    assert names_in(tmp_path) == ["large.tif", "white.tif"]


def test_a_small_scene_does_not_wait_for_all_windows_of_a_large_one(client, tmp_path):
    def slow(cloudy: torch.Tensor) -> None:
        import time

        time.sleep(0.05)

    both(client)
    large = write_tif(tmp_path / "large.tif", np.full((3, 600, 600), 90, np.uint8))
    small = [write_tif(tmp_path / f"{k}.tif", np.full((3, 30, 30), 90, np.uint8)) for k in range(3)]
    ended = []
    pretended = Pretended(slow)
    with with_model(client, pretended) as cluster:

        def work(source: Path) -> None:
            remove_from_scene(
                source, source.with_name(f"clear_{source.name}"), pretended, SMALL, engine=cluster.engine
            )
            ended.append(source.name)

        finish_scenes(cluster, [large, *small], work, groups=lambda source: 1)
    assert sorted(ended[:3]) == ["0.tif", "1.tif", "2.tif"] and ended[3] == "large.tif"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def test_the_command_sends_a_folder_to_a_scheduler_by_its_address(
    processes, client, model_folder, tmp_path, rng, capfd
):
    both(client)
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("one", "two"):
        write_tif(folder / f"{name}.tif", rng.integers(0, 255, (3, 60, 90), dtype=np.uint8))
    options = ("--model", model_folder, "--steps", 1, "--window", 64, "--threads", 1)
    assert run("remove", folder, "-o", tmp_path / "here", *options) == 0
    capfd.readouterr()
    where = processes.scheduler_address
    assert run("remove", folder, "-o", tmp_path / "there", *options, "--cluster", where) == 0
    out, err = capfd.readouterr()
    assert out.startswith(f"wrote 2 images to {tmp_path / 'there'}: 0.011 megapixels in ") and out.count("\n") == 1
    assert "cluster: 2 workers (cpu), dashboard http://" in err
    for name, what in itertools.product(("one.tif", "two.tif"), ("bands", "scale")):
        assert f"{folder / name}: {what}: " in err  # lines of several scenes mingle
    for name in ("one.tif", "two.tif"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_the_command_starts_processes_of_its_own_and_prints_one_line(source, model_folder, tmp_path, capfd):
    options = ("--model", model_folder, "--steps", 0, "--window", 64, "--threads", 1, "--quiet")
    assert run("remove", source, "-o", tmp_path / "here.tif", *options) == 0
    assert run("remove", source, "-o", tmp_path / "there.tif", *options, "--cluster", "local:2") == 0
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "here.tif").read_bytes() == (tmp_path / "there.tif").read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        "local",
        "local:0",
        "local:x",
        "local:99999",
        "local:" + "9" * 5000,
        "tcp://host",
        "tcp://host:65536",
        "http://host:1",
        "",
    ],
)
def test_a_cluster_that_no_one_knows_is_refused(name):
    with pytest.raises(OptionError, match="--cluster is"):
        check_cluster_name(name)


def test_a_scheduler_that_does_not_answer_is_one_line_and_leaves_nothing(
    source, model_folder, tmp_path, monkeypatch, capfd
):
    from declouder.cluster import opening

    monkeypatch.setattr(opening, "CONNECT_S", 1)
    options = ("--model", model_folder, "--cluster", "tcp://127.0.0.1:1")
    assert run("remove", source, "-o", tmp_path / "b.tif", *options) == 2
    err = capfd.readouterr().err
    assert "error: --cluster tcp://127.0.0.1:1 does not answer" in err.splitlines()[-1]
    assert "dask scheduler" in err and names_in(tmp_path) == ["a.tif"]


def test_without_dask_the_error_names_the_command_that_installs_it(source, tmp_path, monkeypatch, capfd):
    for name in [name for name in sys.modules if name.startswith("declouder.cluster")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("declouder.cluster")
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert run("remove", source, "-o", tmp_path / "b.tif", "--cluster", "local:2") == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert "pip install -c constraints.txt '.[cluster]'" in err
    assert names_in(tmp_path) == ["a.tif"]


class Scheduler:
    """A client whose workers are all in one state."""

    status = "running"

    def __init__(self, state: str) -> None:
        self.state = state

    def nthreads(self) -> dict[str, int]:
        return {"tcp://1": 1, "tcp://2": 1}

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        return {"workers": {address: {"status": self.state} for address in self.nthreads()}}


def set_clock(monkeypatch: pytest.MonkeyPatch, clock: Iterator[float]) -> None:
    """Let the engine read these times, s, and it alone: event loops of clusters beside it go by the clock."""
    times = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("declouder.cluster.engine.time", times)


def test_workers_that_are_paused_for_long_end_a_run_instead_of_being_waited_for(monkeypatch):
    set_clock(monkeypatch, itertools.count(0.0, 10.0))
    client = Scheduler("running")
    cluster = Cluster(client, "model", Facts(version="", torch="", cpu="", device="cpu"))
    for _ in range(10):
        cluster.look_after()
    client.state = "paused"
    with pytest.raises(OptionError, match=r"takes work for 60 s \(2 are paused, their memory is full\)"):
        for _ in range(10):
            cluster.look_after()


def test_a_worker_that_is_missing_at_the_first_look_after_long_is_waited_for(monkeypatch):
    set_clock(monkeypatch, iter([0.0, 1000.0, 1010.0, 1071.0]))
    client = Scheduler("paused")
    cluster = Cluster(client, "model", Facts(version="", torch="", cpu="", device="cpu"))
    cluster.look_after()
    cluster.look_after()
    with pytest.raises(OptionError, match="has had no worker that takes work for 60 s"):
        cluster.look_after()


def test_a_worker_of_another_version_that_came_later_is_refused(pipeline, monkeypatch):
    plugin = ModelPlugin(cloudpickle.dumps(pipeline), "cpu", is_local=False)
    monkeypatch.setattr("declouder.cluster.worker.__version__", "0.0.other")
    plugin.setup(None)
    with pytest.raises(
        OptionError, match=r"a worker has declouder 0\.0\.other, this is .*; install the same version"
    ):
        plugin.finished(Work("model", SMALL, {}, {}))


def test_a_worker_keeps_the_layers_that_each_scene_wants():
    plugin = ModelPlugin(cloudpickle.dumps(Pretended(lambda cloudy: None)), "cpu", is_local=False)
    plugin.setup(None)
    window = Window(0, 0, 32, 40)
    group = {0: Part(window, np.zeros((3, 32, 40), np.float32), window)}
    for dtype, kept in (("uint8", "uint16"), ("float32", "float32"), ("int16", "uint16")):
        work = Work("model", SMALL, layers_of(SMALL, bands=3, dtype=dtype, scale=Scaling(0, 255)), group)
        assert plugin.finished(work)[0]["image"].dtype == kept


def test_a_scheduler_that_is_gone_ends_a_run_at_once(monkeypatch):
    set_clock(monkeypatch, itertools.count(0.0, 10.0))
    client = Scheduler("running")
    cluster = Cluster(client, "model", Facts(version="", torch="", cpu="", device="cpu"))
    cluster.look_after()
    client.status = "closed"
    with pytest.raises(OptionError, match="the cluster's scheduler is gone"):
        cluster.look_after()

    class Cancelled:
        def result(self) -> None:
            raise CancelledError

    with pytest.raises(OptionError, match="the cluster's scheduler is gone"):
        _result(Cancelled(), Window(0, 0, 32, 40))


def test_workers_that_differ_are_refused_or_told(caplog):
    ours = facts("cpu")
    assert _agreed({"tcp://1": ours, "tcp://2": ours}) == ours and not caplog.text
    with pytest.raises(OptionError, match=r"worker tcp://2 has declouder 0\.0, this is .*; install the same"):
        _agreed({"tcp://1": ours, "tcp://2": replace(ours, version="0.0")})
    with pytest.raises(OptionError, match=r"devices of several kinds \(cpu, cuda\); give --device cpu"):
        _agreed({"tcp://1": ours, "tcp://2": replace(ours, device="cuda")})
    with pytest.raises(OptionError, match="the workers of --cluster have gone"):
        _agreed({})
    _agreed({"tcp://1": ours, "tcp://2": replace(ours, torch="0.0")})
    assert "the last bit may differ" in caplog.text


def test_a_worker_of_several_threads_computes_one_group_at_a_time():
    inside, most = [], []

    def slow(cloudy: torch.Tensor) -> None:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()

    plugin = ModelPlugin(b"", "cpu", is_local=False)
    plugin.setup(None)
    plugin._pipeline = Pretended(slow)
    window = Window(0, 0, 32, 40)
    work = Work(
        "model",
        SMALL,
        layers_of(SMALL, bands=3, dtype="uint8", scale=Scaling(0, 255)),
        {0: Part(window, np.zeros((3, 32, 40), np.float32), window)},
    )
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(plugin.finished, [work] * 4))
    assert most == [1] * 4


def test_a_worker_that_only_emulates_bfloat16_is_refused_where_the_steps_are_in_it(pipeline, monkeypatch):
    monkeypatch.setattr("declouder.cluster.worker.has_bfloat16", lambda device: device != "cpu")
    monkeypatch.setattr(pipeline, "steps_in_bfloat16", True)
    plugin = ModelPlugin(cloudpickle.dumps(pipeline), "cpu", is_local=False)
    plugin.setup(None)
    with pytest.raises(OptionError, match="a worker's cpu only emulates, slowly; give --precision 32"):
        plugin.finished(Work("model", SMALL, {}, {}))


def test_workers_without_bfloat16_are_refused_before_they_get_the_model(pipeline, monkeypatch):
    said = {"a": Facts("", "", "", "cpu", has_bfloat16=True), "b": Facts("", "", "", "cpu", has_bfloat16=False)}
    monkeypatch.setattr(opening, "_asked", lambda client, device: said)
    monkeypatch.setattr(opening, "_agreed", lambda said: said["a"])
    monkeypatch.setattr(pipeline, "steps_in_bfloat16", True)
    with pytest.raises(OptionError, match="a worker's cpu only emulates"), with_model(SimpleNamespace(), pipeline):
        pass


@pytest.mark.parametrize(
    ("is_local", "gpus", "places"),
    [(True, 2, ["cuda:0", "cuda:1", "cuda:0"]), (True, 1, ["cuda"] * 3), (False, 2, ["cuda"] * 3)],
)
def test_processes_of_one_machine_share_its_gpus_out(is_local, gpus, places, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    plugin = ModelPlugin(b"", "cuda", is_local=is_local)
    found = []
    for name in range(3):
        plugin.setup(SimpleNamespace(name=name))
        found.append(plugin._place())
    assert found == places


def test_the_number_of_threads_is_the_clients():
    options = replace(SMALL, threads=None)
    cluster = Cluster(Scheduler("running"), "model", Facts(version="", torch="", cpu="", device="cpu"))
    assert cluster.engine(options, {})._options.threads == threads_of(options) is not None


class Noise(Pretended):
    def __call__(self, cloudy: torch.Tensor, *, latents: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(images=latents.clamp(0, 1), weights=cloudy, reference=cloudy)


def test_a_worker_takes_each_scenes_own_options():
    plugin = ModelPlugin(b"", "cpu", is_local=False)
    plugin.setup(None)
    plugin._pipeline = Noise(lambda cloudy: None)
    window = Window(0, 0, 32, 40)
    group = {0: Part(window, np.full((3, 32, 40), 0.5, np.float32), window)}
    layers = layers_of(SMALL, bands=3, dtype="float32", scale=Scaling(0, 1))
    found = [plugin.finished(Work("model", replace(SMALL, seed=s), layers, group))[0]["image"] for s in (1, 2, 1)]
    assert (found[0] == found[2]).all() and (found[0] != found[1]).any()


def test_a_script_that_does_not_guard_its_main_part_is_told(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from declouder.cluster import open_cluster\n"
        "from declouder.errors import OptionError\n"
        "try:\n"
        "    with open_cluster('local:1', None): pass\n"
        "except OptionError as error: print('told:', error)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert "told: --cluster local:1 cannot be started" in done.stdout and "if __name__ ==" in done.stdout


def test_a_scheduler_without_workers_is_told(pipeline, monkeypatch):
    monkeypatch.setattr(opening, "FIRST_WORKER_S", 1)
    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL}
    with (
        distributed.LocalCluster(n_workers=0, **options) as empty,
        pytest.raises(OptionError, match="has no workers; start some: dask worker tcp://"),
        open_cluster(empty.scheduler_address, pipeline),
    ):
        pass


def test_the_workers_forget_the_model_when_a_run_ends(client, pipeline):
    both(client)
    with with_model(client, pipeline):
        pass
    held = client.run(lambda dask_worker: [n for n in dask_worker.plugins if n.startswith("declouder-")])
    assert set(map(tuple, held.values())) == {()}


def test_processes_that_are_begun_see_no_interrupt():
    code = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with children_heed_no_interrupt():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
