"""A cluster by its name: processes of this machine, or a scheduler that runs somewhere."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import cloudpickle
import dask
from distributed import Client, LocalCluster

from declouder.cluster.engine import Cluster
from declouder.cluster.worker import Facts, ModelPlugin, check_bfloat16, check_version, facts
from declouder.errors import DeclouderError, OptionError, reason_of
from declouder.interrupts import children_heed_no_interrupt, interrupts_wait
from declouder.version import __version__

log = logging.getLogger(__name__)

CONNECT_S = 10
FIRST_WORKER_S = 30
_MOST_LOCAL = 1024
_LAST_PORT = 65535
_THEIRS = {"asyncio", "distributed", "tornado"}
_SETTINGS = {
    # Our tasks carry their windows, some MB; dask would advise against that.
    "distributed.admin.large-graph-warning-threshold": "1GB",
    "distributed.comm.timeouts.connect": f"{CONNECT_S}s",
}


def check_cluster_name(name: str) -> int | None:
    """Return N of local:N, None for an address.

    Raises:
        OptionError: if it is neither.
    """
    address = re.fullmatch(r"(?:tcp|tls)://[^/\s]+:([0-9]{1,5})", name)
    if address and int(address[1]) <= _LAST_PORT:
        return None
    kind, _, number = name.partition(":")
    if kind == "local" and re.fullmatch(r"[0-9]{1,6}", number) and 1 <= int(number) <= _MOST_LOCAL:
        return int(number)
    raise OptionError(
        f"--cluster is {name!r}; give local:N for N processes here, or tcp://HOST:PORT of a scheduler"
    )


@contextlib.contextmanager
def open_cluster(name: str, pipeline: Any, *, device: str = "auto") -> Iterator[Cluster]:
    """Open a cluster and give its workers the model.

    Args:
        name: "local:N", or the address of a scheduler of dask.distributed.
        pipeline: a CloudRemovalPipeline on the CPU.
        device: "auto", "cpu", "cuda" or "mps", on the workers.

    Raises:
        OptionError: if it cannot be reached, has no workers, or workers that differ from us.
    """
    count = check_cluster_name(name)
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(_SETTINGS))
        _quiet(stack)
        client = stack.enter_context(_local(count) if count is not None else _connected(name))
        yield stack.enter_context(with_model(client, pipeline, device=device, is_local=count is not None))


@contextlib.contextmanager
def with_model(client: Client, pipeline: Any, *, device: str = "auto", is_local: bool = False) -> Iterator[Cluster]:
    """Give the workers of a client the model, for as long as the block lasts; arguments as in `open_cluster`."""
    said = _asked(client, device)
    found = _agreed(said)
    check_bfloat16(pipeline, found.device, has=all(one.has_bfloat16 for one in said.values()))
    # A name of its own for each run: others may use the same workers, and tidy up before us.
    model = f"declouder-{uuid.uuid4().hex}"
    client.register_plugin(ModelPlugin(cloudpickle.dumps(pipeline), found.device, is_local=is_local), name=model)
    try:
        workers = len(client.nthreads())
        log.info("cluster: %d workers (%s), dashboard %s", workers, found.device, client.dashboard_link)
        yield Cluster(client, model, found)
    finally:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.unregister_worker_plugin(model)


@contextlib.contextmanager
def _local(count: int) -> Iterator[Client]:
    """Start so many worker processes on this machine; one that dies is started again."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # Of its own: dask leaves files behind in the one that is for all.
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="declouder-", ignore_cleanup_errors=True))
        stack.enter_context(dask.config.set({"temporary-directory": scratch}))
        stack.enter_context(_environment_put_back())
        with interrupts_wait(), children_heed_no_interrupt():  # half a cluster cannot be closed
            processes = stack.enter_context(
                _started(
                    n_workers=count,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",  # nobody else's business
                    dashboard_address="127.0.0.1:8787",
                    silence_logs=logging.CRITICAL,
                )
            )
        yield stack.enter_context(Client(processes))


def _started(*, n_workers: int, **options: Any) -> LocalCluster:
    try:
        return LocalCluster(n_workers=n_workers, **options)
    except RuntimeError as error:  # what dask says where a process ends as it begins, or cannot be reached
        raise OptionError(
            f"--cluster local:{n_workers} cannot be started ({reason_of(error)}); in a script of your own open it"
            ' below `if __name__ == "__main__":`'
        ) from error


@contextlib.contextmanager
def _environment_put_back() -> Iterator[None]:
    """Take away, at the end, what dask has set in the environment for its processes: ours have no use for it."""
    names = {*dask.config.get("distributed.nanny.pre-spawn-environ", {}), "PYTHONHASHSEED", "__DASK_PARENT_PID"}
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=CONNECT_S)
    except TypeError as error:  # what dask says to tls:// without certificates
        raise OptionError(
            f"--cluster {address} cannot be used ({reason_of(error)}); for tls:// set dask's distributed.comm.tls"
        ) from error
    except (OSError, TimeoutError, ValueError) as error:
        raise OptionError(
            f"--cluster {address} does not answer ({reason_of(error)}); "
            f"start it: dask scheduler, and dask worker {address}"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=FIRST_WORKER_S)
        except TimeoutError:
            raise OptionError(
                f"--cluster {address} has no workers; start some: dask worker {address} --nthreads 1"
            ) from None
        yield client


def _asked(client: Client, device: str) -> dict[str, Facts]:
    """Return what the workers say of themselves, by address."""
    try:
        said: dict[str, Facts] = client.run(facts, device)
    except DeclouderError:
        raise
    except Exception as error:
        raise OptionError(
            f"the workers cannot run declouder {__version__} ({reason_of(error)}); install it in their environment"
        ) from error
    return said


def _agreed(said: Mapping[str, Facts]) -> Facts:
    """Return what all workers have in common.

    Raises:
        OptionError: if there are none, or they have another version of declouder than we, or devices of several
            kinds.
    """
    if not said:
        raise OptionError("the workers of --cluster have gone; start some, and run the same command again")
    for address, one in said.items():
        check_version(one.version, __version__, worker=f"worker {address}")
    devices = sorted({one.device for one in said.values()})
    if len(devices) > 1:
        raise OptionError(f"the workers have devices of several kinds ({', '.join(devices)}); give --device cpu")
    ours = facts("cpu")
    if any((one.torch, one.cpu) != (ours.torch, ours.cpu) for one in said.values()):
        log.warning("workers have another PyTorch or kind of CPU than this machine: the last bit may differ")
    return next(iter(said.values()))


def _quiet(stack: contextlib.ExitStack) -> None:
    """Silence dask's own log while the cluster is open: our errors and warnings say what matters of it."""
    # dask sets levels for some of its loggers apart.
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in _THEIRS]
    for name in names:
        logger = logging.getLogger(name)
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
    stack.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", message="Port .* is already in use")
