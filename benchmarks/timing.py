"""Measure honestly: compile apart, wait for the device, repeat, say on what.

Every program in `benchmarks` begins with `start`, measures by `measure`, prints by
`print_table` and keeps its numbers, together with `device_report`, by `write_json`.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dppo_jax.runtime import num_cores

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "mujoco", "mujoco-mjx")

# Fewer repeats than this tell nothing about their spread.
MIN_REPEATS = 3


class Timing(NamedTuple):
    """Wall-clock seconds of one call.

    median, fastest, slowest: over the repeats, until all results are ready.
    compile: tracing and compiling, which is no part of the others; 0 for a function
        that is not jitted. A persistent compilation cache shortens it; see `start`.
    repeats: how many calls were timed.
    """

    median: float
    fastest: float
    slowest: float
    compile: float
    repeats: int


def measure(
    function: Callable[..., Any],
    *args: Any,
    repeats: int = 7,
    warmup: int = 1,
    carry: bool = False,
    max_seconds: float = 20.0,
) -> Timing:
    """Time `function(*args)`.

    A jitted function is compiled ahead of time, so that compiling is timed by itself
    and no repeat can compile again.

    Args:
        function: jitted, or plain Python that may return arrays.
        *args: arrays or pytrees of arrays.
        repeats: calls to time.
        warmup: calls before that, which are not timed.
        carry: feed the result back as the only argument, as in `state -> state` or
            `state -> (state, metrics)`; needed where the function donates its state.
        max_seconds: stop repeating early, yet not before three repeats.

    Raises:
        ValueError: for too few repeats, or `carry` with more than one argument.
    """
    if repeats < MIN_REPEATS:
        raise ValueError(f"repeats={repeats} shows no spread; take {MIN_REPEATS}.")
    if carry and len(args) != 1:
        raise ValueError(f"carry feeds one argument back, but {len(args)} were given.")
    structure: Any = jax.tree.structure(args)
    compile_seconds = 0.0
    if hasattr(function, "lower"):
        start = time.perf_counter()
        function = function.lower(*args).compile()
        compile_seconds = time.perf_counter() - start

    seconds: list[float] = []
    jax.block_until_ready(args)
    begin = time.perf_counter()
    for call in range(warmup + repeats):
        start = time.perf_counter()
        result = jax.block_until_ready(function(*args))
        end = time.perf_counter()
        if call >= warmup:
            seconds.append(end - start)
        if carry:
            whole = jax.tree.structure((result,)) == structure
            args = (result,) if whole else (result[0],)
        if len(seconds) >= MIN_REPEATS and end - begin > max_seconds:
            break
    return Timing(
        median=statistics.median(seconds),
        fastest=min(seconds),
        slowest=max(seconds),
        compile=compile_seconds,
        repeats=len(seconds),
    )


def matmul_rate(rows: int, width: int, dtype: Any = jnp.float32) -> float:
    """Floating-point operations per second of [rows, width] @ [width, width].

    What a network with layers of this width can reach at best on this device with
    the present `jax_default_matmul_precision`.
    """
    chained = 16  # Enough to hide the cost of starting a program.
    x_key, weight_key = jax.random.split(jax.random.key(0))
    x = jax.random.normal(x_key, (rows, width), dtype)
    # This scale keeps the products of the chain at unit variance.
    weight = jax.random.normal(weight_key, (width, width), dtype) / width**0.5
    weight = weight.astype(dtype)

    @jax.jit
    def chain(x, weight):
        return jax.lax.fori_loop(0, chained, lambda _, x: x @ weight, x)

    return chained * 2 * rows * width**2 / measure(chain, x, weight).median


def start() -> dict[str, Any]:
    """Set JAX up for a benchmark; print and return `device_report`.

    Precision is that of the real programs (`dppo_jax.runtime`); programs are compiled
    afresh, whatever persistent cache the environment names, so that it can be timed.
    """
    jax.config.update("jax_default_matmul_precision", "float32")
    jax.config.update("jax_enable_compilation_cache", False)
    report = device_report()
    print_report(report)
    return report


def device_report() -> dict[str, Any]:
    """What the numbers depend on: device, processor, versions, load and date."""
    device = jax.devices()[0]
    precision = jax.config.values["jax_default_matmul_precision"]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "num_devices": jax.device_count(),
        "processor": processor_name(),
        "cores": num_cores(),
        # Above zero before a benchmark starts means that it shares the machine.
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "matmul_precision": precision or "default",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def processor_name() -> str:
    """Model name of the processor, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def print_report(report: dict[str, Any]) -> None:
    """One readable paragraph of `device_report`."""
    versions = ", ".join(f"{name} {v}" for name, v in report["versions"].items())
    print(f"device     {report['num_devices']} x {report['device']}")
    print(f"processor  {report['processor']}, {report['cores']} cores", end="")
    print(f", load {report['load']}")
    print(f"precision  {report['matmul_precision']}")
    print(f"versions   {versions}")
    print(f"date       {report['date']}", flush=True)


def format_cell(value: Any) -> str:
    """Three significant digits; thousands in groups; None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows with equal keys as a table; text left, numbers right."""
    if not rows:
        return
    lines = [list(rows[0]), *([format_cell(v) for v in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    left = [isinstance(value, str) for value in rows[0].values()]
    for line in lines:
        cells = [
            cell.ljust(width) if is_text else cell.rjust(width)
            for cell, width, is_text in zip(line, widths, left)
        ]
        print("  ".join(cells).rstrip())


def result_path(name: str, report: dict[str, Any]) -> Path:
    """benchmarks/results/<name>-<device>-<date>.json"""
    device = report["device"]
    if report["platform"] == "cpu":
        device = f"{report['processor']} {report['cores']} cores"
    device = re.sub(r"\((r|tm)\)", "", device.lower())
    device = re.sub(r"[^a-z0-9]+", "-", device).strip("-")
    return RESULTS / f"{name}-{device}-{report['date'][:10]}.json"


def write_json(
    path: str | Path, rows: Sequence[dict[str, Any]], report: dict[str, Any]
) -> Path:
    """Write rows and report to `path`, making its folder, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"report": report, "rows": list(rows)}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
