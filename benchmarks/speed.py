"""How fast images are restored, in comparisons made within one run.

    python benchmarks/speed.py --json speed.json [--part paper|shipped|compiled|cuda ...] [--model DIR]
    python benchmarks/speed.py --tables speed.json

    paper     the paper's own networks, random weights, 256 px, 10 steps: quick path against plain
    shipped   a model folder (default: the shipped model): seconds a megapixel by steps and size, and of `--fast` on
              the cloudy images of --data
    compiled  the paper's denoiser alone: torch.compile on the CPU against the quick path
    cuda      megapixels a second in float32 and bfloat16, that compiled too, and scores on --data (LPIPS where
              DECLOUDER_LPIPS_BACKBONE points to AlexNet); wants a GPU

`--clock cpu` counts processor time, for a core that others use too; it means something with `--threads 1` only.
Work is counted in floating-point operations (a multiplication and an addition are two) of the plain networks, so a
path that saves work can pass 100 % of the machine's rate.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch.utils.flop_counter import FlopCounterMode

from declouder.cli.options import FAST_LEAST_PAINTED, FAST_STEPS
from declouder.cli.process import keep_freed_memory
from declouder.data.catalog import set_pairs
from declouder.devices import has_bfloat16
from declouder.lpips import Lpips
from declouder.metrics import load_lpips, psnr, ssim
from declouder.metrics import lpips as lpips_of
from declouder.model_folder import NETWORKS
from declouder.networks import MSDA, Denoiser, WeightNet
from declouder.pipeline import CloudRemovalPipeline, make_scheduler

SIDE_PX = 256
PARTS = ("paper", "shipped", "compiled", "cuda")
Clock = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="without it all")
    parser.add_argument("--model", help="a pipeline folder; without it the shipped model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--repeats", type=int, default=3, help="of the shipped model; the least counts")
    parser.add_argument("--steps", type=int, default=10, help="of the paper's networks")
    parser.add_argument(
        "--rounds", type=int, default=1, help="of the paper's networks, path after path; the least counts"
    )
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders whose test images count")
    parser.add_argument(
        "--networks", nargs="*", choices=("model", "paper"), default=["model", "paper"], help="of cuda"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go; without it to stdout")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="print a written FILE as Markdown, and end")
    given = parser.parse_args()
    if given.tables:
        print(tables(json.loads(given.tables.read_text(encoding="utf-8"))))
        return
    torch.set_num_threads(given.threads)
    clock: Clock = time.process_time if given.clock == "cpu" else time.perf_counter
    parts = given.part or PARTS
    report: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "torch": torch.__version__,
        "threads": given.threads,
        "clock": given.clock,
        "matmul_gflops": matmul_rates(clock),
    }
    if "paper" in parts:
        report["paper"] = paper(given.steps, given.rounds, clock)
    if "shipped" in parts:
        report["shipped"] = shipped(given.model, given.repeats, clock, given.data)
    if "compiled" in parts:
        report["compiled"] = compiled(given.repeats, clock)
    if "cuda" in parts:
        measured = torch.cuda.is_available()
        lpips, _ = load_lpips()
        found = cuda(given.model, given.data, given.networks, lpips) if measured else "not measured: no GPU"
        report["cuda"] = found
    text = json.dumps(report, indent=2)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


def machine() -> str:
    """Return the processor's name, as Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def matmul_rates(clock: Clock, side: int = 2048) -> dict[str, float]:
    """Return GFLOP/s of float32 products of large square matrices, by torch's library and by numpy's."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    c, d = a.numpy(), b.numpy()
    work = {"torch": lambda: a @ b, "numpy": lambda: c @ d}
    return {name: round(2 * side**3 / least(run, 5, clock) / 1e9, 1) for name, run in work.items()}


def best_matmul_rate(clock: Clock) -> float:
    """Return the better library's GFLOP/s in float32, also within autocast."""
    with torch.autocast("cpu", enabled=False):
        return max(matmul_rates(clock).values())


def least(work: Callable[[], object], repeats: int, clock: Clock) -> float:
    """Return the least time of `work`, s, after one call that does not count."""
    work()
    times = []
    for _ in range(repeats):
        begin = clock()
        work()
        times.append(clock() - begin)
    return min(times)


def quiet(pipeline: Any, *, quick: bool) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.quick = quick
    return pipeline


def paper_pipeline() -> Any:
    """Return the paper's networks with random weights; last layers are not zero, or all would be trivial."""
    torch.manual_seed(0)
    denoiser, weight_net = Denoiser(), WeightNet()
    for network in (denoiser, weight_net):
        torch.nn.init.normal_(network.unet.conv_out.weight, std=0.02)
    return CloudRemovalPipeline(MSDA(), denoiser, weight_net, make_scheduler("ddim"))


def with_plain_attention(pipeline: Any) -> Any:
    """Return a copy that computes attention as the authors' code does: the whole matrix at once."""
    plain = copy.deepcopy(pipeline)
    for network in (plain.denoiser, plain.weight_net):
        for module in network.modules():
            if isinstance(module, Attention):
                module.set_processor(AttnProcessor())
    return plain


def paper(steps: int, rounds: int, clock: Clock) -> dict[str, Any]:
    """Compare the paths on the paper's networks, one image each; with several rounds in turn, the least of each.

    Where others use the machine too, only rounds compare. As freed memory that is kept once is kept for good, all
    paths keep it then. The rate of matrix products is measured right before and after each path, and the better of
    the two counts: a virtual machine's processor is not as quick all the time.
    """
    pipeline = paper_pipeline()
    cloudy, noise = torch.rand(1, 3, SIDE_PX, SIDE_PX), torch.randn(1, 3, SIDE_PX, SIDE_PX)

    def restored(pipeline: Any, steps: int) -> torch.Tensor:
        """Return (1, 3, SIDE_PX, SIDE_PX) in [0, 1]."""
        result = pipeline(cloudy, num_inference_steps=steps, latents=noise, output_type="pt")
        return cast(torch.Tensor, result.images)

    # The counter does not know the CPU's fused attention, but the matrix products of the plain one.
    with FlopCounterMode(display=False) as counter:
        restored(quiet(with_plain_attention(pipeline), quick=False), 1)
    with FlopCounterMode(display=False) as once, torch.no_grad():
        pipeline.reference(cloudy)
    reference_flops = once.get_total_flops()
    gflop = (reference_flops + steps * (counter.get_total_flops() - reference_flops)) / 1e9
    variants = {
        "as the authors' code (whole attention matrix, NCHW, float32)": quiet(
            with_plain_attention(pipeline), quick=False
        ),
        "networks as they are (fused attention, NCHW, float32)": quiet(copy.deepcopy(pipeline), quick=False),
        "default path": quiet(copy.deepcopy(pipeline), quick=True),
        "default path, freed memory kept (declouder remove)": quiet(copy.deepcopy(pipeline), quick=True),
    }
    if has_bfloat16("cpu"):  # others emulate it, ten times slower
        variants["networks as they are, bfloat16 autocast"] = quiet(copy.deepcopy(pipeline), quick=False)
        variants["default path, steps in bfloat16"] = quiet(copy.deepcopy(pipeline), quick=True)
        variants["default path, steps in bfloat16"].steps_in_bfloat16 = True
    if rounds > 1:
        keep_freed_memory()
        del variants["default path, freed memory kept (declouder remove)"]
    rows: dict[str, Any] = {}
    expected = torch.empty(0)
    for number, (name, variant) in itertools.product(range(rounds), variants.items()):
        if "freed" in name:
            keep_freed_memory()
        with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in name):
            if number == 0:
                restored(variant, 1)
            rate_before = best_matmul_rate(clock)
            begin = clock()
            images = restored(variant, steps)
            seconds = clock() - begin
            rate_gflops = max(rate_before, best_matmul_rate(clock))
        expected = images if not rows else expected
        if name in rows and rows[name]["seconds"] <= seconds:
            continue
        rows[name] = {
            "seconds": round(seconds, 2),
            "seconds_per_megapixel": round(seconds / (SIDE_PX**2 / 1e6), 1),
            "matmul_gflops": rate_gflops,
            "share_of_matmul_rate": round(gflop / seconds / rate_gflops, 3),
            "largest_difference": float((images - expected).abs().max()),
        }
    return {
        "steps": steps,
        "rounds": rounds,
        "gflop": round(gflop, 1),
        "rows": rows,
        "profile": profile(lambda: restored(variants["default path"], 1)),
    }


def shipped(model: str | None, repeats: int, clock: Clock, folders: Sequence[Path]) -> dict[str, Any]:
    """Time a model folder by steps and size, all paths in turn, `--fast` and bfloat16 on real images."""
    pipeline = quiet(CloudRemovalPipeline.from_pretrained(model), quick=True)
    default = pipeline.config.num_inference_steps
    rows = []
    for side in (SIDE_PX, 4 * SIDE_PX):
        cloudy = torch.rand(1, 3, side, side)
        noise = torch.randn(1, 3, side, side)
        for steps in sorted({0, 1, 2, 4, default}):
            row: dict[str, Any] = {"side_px": side, "steps": steps, "is_default": steps == default}
            images = {}
            for path in ("plain", "default", "bfloat16") if has_bfloat16("cpu") else ("plain", "default"):
                quiet(pipeline, quick=path != "plain").steps_in_bfloat16 = path == "bfloat16"
                run = partial(pipeline, cloudy, num_inference_steps=steps, latents=noise, output_type="pt")
                images[path] = run().images
                seconds = least(run, repeats if side == SIDE_PX else 1, clock)
                row[f"{path}_seconds_per_megapixel"] = round(seconds / (side**2 / 1e6), 2)
            row["largest_difference"] = float((images["plain"] - images["default"]).abs().max())
            rows.append(row)
    small = torch.rand(1, 3, SIDE_PX, SIDE_PX)
    quiet(pipeline, quick=True).steps_in_bfloat16 = False
    return {
        "model": model or "shipped",
        "rows": rows,
        "fast": {folder.name: fast(pipeline, folder, clock) for folder in folders},
        "bfloat16": {folder.name: bfloat16(pipeline, folder, clock) for folder in folders if has_bfloat16("cpu")},
        "profile": profile(lambda: pipeline(small, output_type="pt")),
    }


def fast(pipeline: Any, folder: Path, clock: Clock) -> dict[str, float]:
    """Return seconds a megapixel of `--fast` on a folder's test images, and the share of them that took a step."""
    pipeline.steps_in_bfloat16 = has_bfloat16("cpu")  # as the command does
    seconds, pixels, stepped = 0.0, 0, []
    for pair in set_pairs(folder, "test"):
        cloudy = torch.from_numpy(pair.read_cloudy()).permute(2, 0, 1)[None] / 255
        run = partial(pipeline, cloudy, num_inference_steps=FAST_STEPS, least_painted=FAST_LEAST_PAINTED)
        seconds += least(partial(run, output_type="pt"), 1, clock)
        pixels += cloudy[0, 0].numel()
        stepped.append(bool((run(output_type="pt").weights != 1).any()))
    pipeline.steps_in_bfloat16 = False
    return {"seconds_per_megapixel": round(seconds / pixels * 1e6, 2), "stepped": round(float(np.mean(stepped)), 3)}


def bfloat16(pipeline: Any, folder: Path, clock: Clock) -> dict[str, float]:
    """Return seconds a megapixel at the default steps in float32 and bfloat16, in turn, and how images differ.

    Of a folder's cloudy test images, in [0, 1]: the largest difference, and the largest root mean square of one.
    """
    seconds, pixels, most, most_rms = [0.0, 0.0], 0, 0.0, 0.0
    for pair in set_pairs(folder, "test"):
        cloudy = torch.from_numpy(pair.read_cloudy()).permute(2, 0, 1)[None] / 255
        noise = torch.randn(cloudy.shape, generator=torch.Generator().manual_seed(0))
        run = partial(pipeline, cloudy, latents=noise, output_type="pt")
        images = []
        for number, lower in enumerate((False, True)):
            pipeline.steps_in_bfloat16 = lower
            images.append(run().images)
            seconds[number] += least(run, 1, clock)
        difference = images[1] - images[0]
        most = max(most, float(difference.abs().max()))
        most_rms = max(most_rms, float(difference.square().mean().sqrt()))
        pixels += cloudy[0, 0].numel()
    pipeline.steps_in_bfloat16 = False
    speeds = (round(total / pixels * 1e6, 2) for total in seconds)
    return {
        **dict(zip(("float32_seconds_per_megapixel", "bfloat16_seconds_per_megapixel"), speeds, strict=True)),
        "largest_difference": float(f"{most:.1e}"),
        "largest_rms": float(f"{most_rms:.1e}"),
    }


def profile(work: Callable[[], object], most: int = 8) -> dict[str, float]:
    """Return the share of time of the operators that take most."""
    work()
    with torch.profiler.profile() as found:
        work()
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return {event.key: round(event.self_cpu_time_total / total, 3) for event in events[:most]}


def compiled(repeats: int, clock: Clock) -> dict[str, float]:
    """Return seconds of the paper's denoiser, 256 px: as it is, on the quick path, compiled; and of compiling."""
    from torch._inductor import config as inductor

    from declouder.networks.prepared import Prepared

    torch.manual_seed(0)
    denoiser = Denoiser().eval()
    x, t = torch.randn(1, 6, SIDE_PX, SIDE_PX), torch.tensor([50])
    with torch.inference_mode():
        seconds = {"as it is": least(lambda: denoiser(x, t), repeats, clock)}
        quick = Prepared(denoiser)
        seconds["quick path"] = least(lambda: quick(x, t), repeats, clock)
    inductor.freezing = True  # weights become constants, in the layout that suits
    x = x.contiguous(memory_format=torch.channels_last)
    network: Callable[..., object] = torch.compile(denoiser.to(memory_format=torch.channels_last))
    with torch.no_grad():
        begin = clock()
        network(x, t)
        compiling = clock() - begin
        seconds["compiled"] = least(lambda: network(x, t), repeats, clock)
    return {name: round(value, 3) for name, value in {**seconds, "compiling": compiling}.items()}


def cuda(model: str | None, folders: Sequence[Path], wanted: Sequence[str], lpips: Lpips | None) -> dict[str, Any]:
    """Return megapixels a second on the GPU at the best batch, the share of its matmul rate, scores on pairs.

    Rows go to stderr as they come, one network after the other: where time on a GPU is short, what was measured is
    not lost.
    """
    rates = {dtype: cuda_matmul_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    makers: dict[str, tuple[str, Callable[[], Any]]] = {
        "model": ("model, its own steps", lambda: CloudRemovalPipeline.from_pretrained(model)),
        "paper": ("paper, 10 steps", paper_pipeline),
    }
    rows: list[dict[str, Any]] = []

    def add(networks: str, dtype: torch.dtype, speed: float, batch: int, gflop: float, **more: Any) -> None:
        share = speed * 1e6 / SIDE_PX**2 * gflop * 1e9 / rates[dtype]
        row = {
            "networks": networks,
            "dtype": _name(dtype),
            "batch": batch,
            "megapixels_per_second": round(speed, 3),
        }
        rows.append({**row, "share_of_matmul_rate": round(share, 3), **more})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)

    for networks, make in (makers[name] for name in wanted):
        for dtype in rates:
            pipeline = quiet(make().to("cuda", dtype), quick=False)
            gflop = cuda_gflop(pipeline)
            speed, batch = best_batch(pipeline)
            found = {}
            if make is not paper_pipeline:  # whose weights are random
                found["scores"] = {folder.name: scores(pipeline, folder, lpips) for folder in folders}
            add(networks, dtype, speed, batch, gflop, **found)
        for part in NETWORKS:  # of bfloat16, the quicker one
            getattr(pipeline, part).compile()
        begin = time.perf_counter()
        on_gpu(pipeline, batch)
        compiling = round(time.perf_counter() - begin, 1)
        speed = batch * SIDE_PX**2 / 1e6 / least(partial(on_gpu, pipeline, batch), 2, time.perf_counter)
        add(networks, torch.bfloat16, speed, batch, gflop, compiling_seconds=compiling)
    return {
        "gpu": torch.cuda.get_device_name(),
        "matmul_tflops": {_name(dtype): round(rate / 1e12, 1) for dtype, rate in rates.items()},
        "rows": rows,
    }


def cuda_matmul_rate(dtype: torch.dtype, side: int = 8192) -> float:
    """Return FLOP/s of the product of two large square matrices on the GPU."""
    a = torch.randn(side, side, device="cuda", dtype=dtype)

    def product() -> None:
        a @ a
        torch.cuda.synchronize()

    return 2 * side**3 / least(product, 5, time.perf_counter)


def cuda_gflop(pipeline: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        pipeline(torch.rand(1, 3, SIDE_PX, SIDE_PX), output_type="pt")
    return float(counter.get_total_flops() / 1e9)


def on_gpu(pipeline: Any, batch: int) -> None:
    """Restore a batch from the CPU's memory and wait for the GPU."""
    pipeline(torch.rand(batch, 3, SIDE_PX, SIDE_PX), output_type="pt")
    torch.cuda.synchronize()


def best_batch(pipeline: Any) -> tuple[float, int]:
    """Return the highest megapixels a second and the batch that gave it, as far as memory goes."""
    best = (0.0, 0)
    for batch in (1, 4, 16, 64):
        try:
            seconds = least(partial(on_gpu, pipeline, batch), 1, time.perf_counter)
        except torch.OutOfMemoryError:
            break
        best = max(best, (batch * SIDE_PX**2 / 1e6 / seconds, batch))
    return best


def scores(pipeline: Any, folder: Path, lpips: Lpips | None) -> dict[str, float]:
    """Return mean PSNR, dB, SSIM and, with its network, LPIPS on the test pairs of a folder."""
    rows = []
    for number, pair in enumerate(set_pairs(folder, "test")):
        generator = torch.Generator().manual_seed(number)
        cloudy = torch.from_numpy(pair.read_cloudy()).permute(2, 0, 1)[None] / 255
        restored = pipeline(cloudy, generator=generator, output_type="np").images[0]
        image, clear = np.rint(restored * 255).astype(np.uint8), pair.read_clear()
        distances = [] if lpips is None else [lpips_of(image, clear, lpips)]
        rows.append((psnr(image, clear), ssim(image, clear), *distances))
    means = dict(zip(("psnr", "ssim", "lpips"), np.mean(rows, axis=0), strict=False))
    return {name: round(float(value), 3 if name == "psnr" else 4) for name, value in means.items()}


def tables(report: dict[str, Any]) -> str:
    """Return the figures of a report as Markdown tables."""
    rates = ", ".join(f"{name} {rate:g}" for name, rate in report["matmul_gflops"].items())
    lines = [
        f"{report['machine']}, {report['threads']} thread(s), torch {report['torch']}, {report['clock']} time;"
        f" matrix products, GFLOP/s: {rates}. `{report['command']}`",
        "",
    ]
    if "paper" in report:
        rows = report["paper"]["rows"]
        first, plain = (list(rows.values())[k]["seconds"] for k in (0, 1))
        lines += [
            f"| {report['paper']['gflop']:g} GFLOP | s | than authors' | than plain | of matmul | differs |",
            "|---|---|---|---|---|---|",
            *(
                f"| {name} | {r['seconds']:g} | {first / r['seconds']:.2f} x | {plain / r['seconds']:.2f} x |"
                f" {r['share_of_matmul_rate']:.0%} | {r['largest_difference']:.0e} |"
                for name, r in rows.items()
            ),
            "",
            "Of the default path's time: " + _shares(report["paper"]["profile"]),
            "",
        ]
    if "compiled" in report:
        lines += ["| the paper's denoiser | s |", "|---|---|"]
        lines += [f"| {name} | {seconds:g} |" for name, seconds in report["compiled"].items()]
        lines.append("")
    if "shipped" in report:
        lower = "bfloat16_seconds_per_megapixel" in report["shipped"]["rows"][0]
        lines += [
            "| px | steps | plain, s/MP | default, s/MP | gain | differs |"
            + lower * " bfloat16, s/MP | gain on default |",
            "|---|---|---|---|---|---|" + lower * "---|---|",
        ]
        for r in report["shipped"]["rows"]:
            plain, default = r["plain_seconds_per_megapixel"], r["default_seconds_per_megapixel"]
            steps = f"{r['steps']} (default)" if r["is_default"] else r["steps"]
            lines.append(
                f"| {r['side_px']} | {steps} | {plain:g} | {default:g} | {plain / default:.2f} x |"
                f" {r['largest_difference']:.0e} |"
                + lower
                * f" {(s := r.get('bfloat16_seconds_per_megapixel', 1)):g} | {default / s:.2f} x |"
            )
        for name, r in report["shipped"].get("bfloat16", {}).items():
            both = [r[f"{kind}_seconds_per_megapixel"] for kind in ("float32", "bfloat16")]
            told = f"{both[1]:g} s/MP, {both[0]:g} in float32 ({both[0] / both[1]:.2f} x)"
            differ = f"{r['largest_difference']:g}, root mean square of an image at most {r['largest_rms']:g}"
            lines += ["", f"Steps in bfloat16 on {name}: {told}; images differ by at most {differ}."]
        for name, r in report["shipped"].get("fast", {}).items():
            took = f"{r['stepped']:.0%} of the images took a step"
            lines += ["", f"`--fast` on {name}: {r['seconds_per_megapixel']:g} s/MP, {took}."]
        lines += ["", "Of its time at the default steps: " + _shares(report["shipped"]["profile"]), ""]
    if isinstance(report.get("cuda"), dict):
        lines += cuda_table(report["cuda"])
    elif "cuda" in report:
        lines.append(f"GPU: {report['cuda']}")
    return "\n".join(lines)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def cuda_table(found: dict[str, Any]) -> list[str]:
    """Return the lines of the GPU's table."""
    rates = ", ".join(f"{dtype} {rate:g}" for dtype, rate in found["matmul_tflops"].items())
    lines = [
        f"{found['gpu']}; matrix products, TFLOP/s: {rates}",
        "",
        "| networks | numbers | compiled | batch | MP/s | of matmul | PSNR, SSIM, LPIPS |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in found["rows"]:
        compiled = f"in {r['compiling_seconds']:g} s" if "compiling_seconds" in r else "no"
        told = "; ".join(
            f"{name} " + ", ".join(f"{value:g}" for value in s.values()) for name, s in r.get("scores", {}).items()
        )
        lines.append(
            f"| {r['networks']} | {r['dtype']} | {compiled} | {r['batch']} | {r['megapixels_per_second']:g} |"
            f" {r['share_of_matmul_rate']:.0%} | {told} |"
        )
    return [*lines, ""]


def _shares(profile: dict[str, float]) -> str:
    return ", ".join(f"{name.removeprefix('aten::')} {share:.0%}" for name, share in profile.items())


if __name__ == "__main__":
    main()
