"""Times calls: compiles them first, waits for the device, repeats, reports the machine.

Every program in `benchmarks` begins with `start`, measures with `measure` or
`measure_together`, prints with `print_table` and keeps its rows and the
`device_report` with `write_json`.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dppo_jax.errors import SettingsError
from dppo_jax.runtime import num_cores

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "mujoco", "mujoco-mjx")

# Fewer repeats than this do not show their spread.
MIN_REPEATS = 3


class Timing(NamedTuple):
    """Wall-clock seconds of one call.

    median, fastest, slowest: over the repeats, until all results are ready.
    compile: tracing and compiling, not included in the others; 0 for a function that
        is not jitted. A persistent compilation cache shortens it; see `start`.
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

    A jitted function is compiled ahead of time, so that compiling is timed separately
    and no repeat compiles again.

    Args:
        function: jitted, or plain Python that may return arrays.
        *args: arrays or pytrees of arrays.
        repeats: calls to time.
        warmup: calls before that, which are not timed.
        carry: feed the result back as the only argument, as in `state -> state` or
            `state -> (state, metrics)`; needed if the function donates its state.
        max_seconds: stop repeating after this time, but not before three repeats.

    Raises:
        SettingsError: too few repeats, or `carry` with more than one argument.
    """
    call = Call(function, args, carry)
    (timed,) = measure_together(
        [call], repeats=repeats, warmup=warmup, max_seconds=max_seconds
    )
    return timed


def measure_together(
    calls: Sequence["Call | tuple[Any, ...]"],
    *,
    repeats: int = 7,
    warmup: int = 1,
    max_seconds: float = 20.0,
) -> list[Timing]:
    """As `measure`, for several functions whose times are to be compared.

    They run in turns, so that a drift in the speed of the machine affects all alike.

    Args:
        calls: functions with their arguments; a plain tuple (function, *args) is a Call
            without `carry`.
    """
    if repeats < MIN_REPEATS:
        raise SettingsError(f"repeats={repeats} must be at least {MIN_REPEATS}.")
    runners = [
        _Runner(call if isinstance(call, Call) else Call(call[0], call[1:]))
        for call in calls
    ]
    begin = time.perf_counter()
    for number in range(warmup + repeats):
        for runner in runners:
            runner.run(keep=number >= warmup)
        enough = number - warmup + 1 >= MIN_REPEATS
        if enough and time.perf_counter() - begin > max_seconds:
            break
    return [runner.timing() for runner in runners]


class Call(NamedTuple):
    """A function, its arguments, and whether its result is its next argument."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    carry: bool = False


class _Runner:
    """Calls one compiled function and records its times."""

    def __init__(self, call: Call) -> None:
        if call.carry and len(call.args) != 1:
            raise SettingsError(
                f"carry needs one argument, but {len(call.args)} were given; pass a "
                "pytree."
            )
        self._function, self._args, self._carry = call
        self._structure: Any = jax.tree.structure(call.args)
        self._compile = 0.0
        self._seconds: list[float] = []
        if hasattr(self._function, "lower"):
            start = time.perf_counter()
            self._function = self._function.lower(*self._args).compile()
            self._compile = time.perf_counter() - start
        jax.block_until_ready(self._args)

    def run(self, *, keep: bool) -> None:
        """Call once; record the time if `keep`."""
        start = time.perf_counter()
        result = jax.block_until_ready(self._function(*self._args))
        end = time.perf_counter()
        if keep:
            self._seconds.append(end - start)
        if self._carry:
            whole = jax.tree.structure((result,)) == self._structure
            self._args = (result,) if whole else (result[0],)

    def timing(self) -> Timing:
        return Timing(
            median=statistics.median(self._seconds),
            fastest=min(self._seconds),
            slowest=max(self._seconds),
            compile=self._compile,
            repeats=len(self._seconds),
        )


def peak_memory() -> float:
    """The most memory in use so far in MB: of the accelerator, or of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # Of this process; ru_maxrss would include its parent's.
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024 / 1e6
    # In units of 1024 bytes, but on macOS of bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def start() -> dict[str, Any]:
    """Set JAX up for a benchmark; print and return `device_report`.

    The precision is that of the stages (`dppo_jax.runtime`). The persistent compilation
    cache is disabled, so that compiling can be timed.
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
        # A load above zero before a benchmark means that it shares the machine.
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
    """Model name of the processor, if the system gives one."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def print_report(report: dict[str, Any]) -> None:
    """Print the main entries of `device_report`."""
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


def is_text_column(rows: Sequence[dict[str, Any]], name: str) -> bool:
    """Whether any row holds text in this column."""
    return any(isinstance(row.get(name), str) for row in rows)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a table; text left, numbers right, a dash for a missing value."""
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([format_cell(row.get(x)) for x in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    left = [is_text_column(rows, name) for name in names]
    for line in lines:
        cells = [
            cell.ljust(width) if is_text else cell.rjust(width)
            for cell, width, is_text in zip(line, widths, left)
        ]
        print("  ".join(cells).rstrip(), flush=True)


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
    """Write rows and report to `path`, create its folder, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"report": report, "rows": list(rows)}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option `--json`, which keeps a table."""
    parser.add_argument(
        "--json", nargs="?", const="", help="keep the rows, in benchmarks/results/"
    )


def finish(
    name: str,
    rows: Sequence[dict[str, Any]],
    report: dict[str, Any],
    path: str | Path | None,
) -> None:
    """Print the rows and, unless `path` is None, keep them; "" chooses the path."""
    print_table(rows)
    if path is not None:
        path = path or result_path(name, report)
        print(f"wrote {write_json(path, rows, report)}")
