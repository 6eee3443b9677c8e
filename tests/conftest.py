"""Shared by the tests: a fake pipeline, a tiny real one, a GeoTIFF with all that one can carry, processors."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import FrozenDict
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the programs that tests start: two tests run at a time

SLOW = ("cluster", "python_page", "readme", "scene_resume", "training", "training_machines", "training_resume")
"""Files of tests that are begun first, so that no process has one left when the other has finished."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in SLOW)


class FakePipeline:
    """Behaves as a CloudRemovalPipeline whose result is `f(cloudy, latents)`; remembers what it was given."""

    def __init__(self, f: Callable[..., torch.Tensor], bands: tuple[str, ...] = ("red", "green", "blue")) -> None:
        self.f = f
        self.config = FrozenDict(bands=list(bands), num_inference_steps=1)
        self.components: dict[str, Any] = {}
        self.scheduler = DDIMScheduler()
        self.device = torch.device("cpu")
        self.computing_device = self.device
        self.steps_dtype = torch.float32
        self.seen: list[torch.Tensor] = []
        self.options: list[dict[str, Any]] = []

    def __call__(self, cloudy: torch.Tensor, *, latents: torch.Tensor, **options: Any) -> SimpleNamespace:
        assert torch.isfinite(cloudy).all() and cloudy.min() >= 0 and cloudy.max() <= 1
        self.seen.append(cloudy)
        self.options.append(options)
        images = self.f(cloudy, latents)
        return SimpleNamespace(images=images, weights=torch.ones_like(images), reference=cloudy)


@pytest.fixture
def identity() -> FakePipeline:
    return FakePipeline(lambda cloudy, latents: cloudy)


@pytest.fixture
def darker() -> FakePipeline:
    return FakePipeline(lambda cloudy, latents: cloudy * 0.5)


@pytest.fixture(autouse=True)
def _seeded_torch() -> None:
    """Untrained networks are drawn alike in every order of tests: a bound on them holds always or never."""
    torch.manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(params=["AVX512", "AVX2"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What PyTorch says it computes with: some layers do it in other ways on other processors."""
    name: str = request.param
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)
    return name


def write_tif(path: Path, dn: np.ndarray, **profile: Any) -> Path:
    """Write (C, H, W) as a GeoTIFF."""
    bands, height, width = dn.shape
    given = {"crs": "EPSG:32633", "transform": Affine(10, 0, 5e5, 0, -10, 4e6)} | profile
    with rasterio.open(path, "w", "GTiff", width, height, bands, dtype=dn.dtype, **given) as dataset:
        dataset.write(dn)
    return path


def read_tif(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def rich_tif(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A 5-band uint16 GeoTIFF, bands out of order, with everything set that a GeoTIFF can carry."""
    dn = rng.integers(1, 9000, (5, 70, 90), dtype=np.uint16)
    dn[:, :10, :20] = 0
    path = write_tif(tmp_path / "rich.tif", dn, nodata=0, compress="lzw", transform=Affine(9, 2, 5e5, 2, -9, 4e6))
    with rasterio.open(path, "r+") as dataset:
        for band, name in enumerate(("swir", "blue", "green", "red", "nir"), start=1):
            dataset.set_band_description(band, name)
            dataset.update_tags(band, wavelength=str(400 + band), STATISTICS_MEAN="5")
        dataset.update_tags(ns="PROVIDER", satellite="one")
        dataset.update_tags(acquired="2020-01-01", STATISTICS_MAXIMUM="9", AREA_OR_POINT="Point")
        dataset.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * 4
        dataset.scales, dataset.offsets = [1e-4] * 5, [-0.1] * 5
        dataset.units = ["reflectance"] * 5
    return path


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a real pipeline with tiny random networks."""
    from declouder.networks import REFERENCES, Denoiser, WeightNet
    from declouder.pipeline import CloudRemovalPipeline, make_scheduler

    torch.manual_seed(0)
    small: dict[str, Any] = {"widths": (32, 32), "attention_levels": (), "heads": 1, "layers": 1}
    reference = REFERENCES["compact"](widths=(8, 16), blocks=(1, 1))
    pipeline = CloudRemovalPipeline(reference, Denoiser(**small), WeightNet(**small), make_scheduler("ddim"))
    folder = tmp_path_factory.mktemp("model") / "tiny"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet's features with random weights: right in shape, for the plumbing."""
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3)}
    shapes[10] = (256, 256, 3, 3)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer, shape in shapes.items():
        scale = math.sqrt(2 / math.prod(shape[1:]))
        state[f"features.{layer}.weight"] = torch.randn(shape, generator=generator) * scale
        state[f"features.{layer}.bias"] = torch.zeros(shape[0])
    path = tmp_path_factory.mktemp("backbone") / "alexnet.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the toy recipe; nobody changes it."""
    from declouder.config import STAGE_NAMES
    from toy import toy, train_quietly

    out = tmp_path_factory.mktemp("runs") / "toy"
    reports = train_quietly(toy(), out)
    assert [report.stage for report in reports] == list(STAGE_NAMES)
    assert all(report.finished and report.steps == 6 for report in reports)
    return out


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Three pairs of 40 x 48 px, grey ground; the cloudy image is 30 brighter in blue."""
    rng = np.random.default_rng(0)
    for kind in ("cloud", "label"):
        (tmp_path / "FAKE" / "test" / kind).mkdir(parents=True)
    for name in ("3", "12", "101"):
        clear = rng.integers(20, 180, (40, 48, 3), dtype=np.uint8)
        for kind, image in (("label", clear), ("cloud", clear + np.array([0, 0, 30], np.uint8))):
            Image.fromarray(image).save(tmp_path / "FAKE" / "test" / kind / f"{name}.png")
    return tmp_path / "FAKE"


def write_masks(folder: Path, mask: np.ndarray) -> Path:
    """Write a mask for each of the `plain` pairs."""
    folder.mkdir()
    for name in ("3", "12", "101"):
        Image.fromarray(mask).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A file that makes GDAL ask a server here, and the list of what that server was asked for."""
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "2")  # GDAL lets no other thread run while it waits
    found: list[str] = []

    class Noting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.append(self.path)
            self.send_response(404)
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Noting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/capabilities"
        yield f"<GDAL_WMTS><GetCapabilitiesUrl>{address}</GetCapabilitiesUrl></GDAL_WMTS>", found
        server.shutdown()
