"""Mutation testing: changes one thing in a module, then checks whether a test fails.

    python -m tests.mutants learning/losses learning/returns    # no name: all MODULES

cosmic-ray makes the changes, with its own operators and those below. The tests run on a
copy of the repository, each time in a fork of one process that has imported JAX and all
other libraries, because importing takes longer than testing. Survivors are printed as
diffs and kept in `build/mutants/MODULE.json`.
"""

import argparse
import contextlib
import difflib
import gc
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "build" / "mutants"
COPIED = ("dppo_jax", "experiments", "benchmarks", "tests", "setup.cfg")
OURS = ("dppo_jax", "experiments", "benchmarks", "tests")

# Module -> its tests, the quickest first.
MODULES = {
    "learning/losses": ("tests/learning/test_losses.py",),
    "learning/returns": ("tests/learning/test_returns.py",),
    "learning/chain_losses": (
        "tests/learning/test_chain_losses.py",
        "tests/learning/test_chain_kl.py",
    ),
    "learning/flow_losses": (
        "tests/learning/test_flow_losses.py",
        "tests/algorithms/test_fpo.py",
    ),
    "learning/on_policy_updates": (
        "tests/learning/test_on_policy_updates.py",
        "tests/algorithms/test_ppo_update.py",
    ),
    "learning/on_policy_chunks": ("tests/algorithms/test_fpo.py",),
    "learning/regression": ("tests/learning/test_regression.py",),
    "learning/advantage_regression": ("tests/learning/test_advantage_regression.py",),
    "learning/steering": ("tests/learning/test_steering.py",),
    "learning/group_surrogate": ("tests/learning/test_group_surrogate.py",),
    "diffusion/denoising": ("tests/diffusion/test_denoising.py",),
    "diffusion/chain": ("tests/diffusion/test_denoising.py",),
    "diffusion/few_steps": ("tests/diffusion/test_few_steps.py",),
    "diffusion/likelihood": ("tests/diffusion/test_likelihood.py",),
    "learning/likelihood_losses": ("tests/algorithms/test_ppo_exact.py",),
    "algorithms/ppo/gradients": (
        "tests/algorithms/test_ppo_gradients.py",
        "tests/algorithms/test_ppo_update.py",
    ),
    "algorithms/ppo/update": ("tests/algorithms/test_ppo_update.py",),
}


# One or two of cosmic-ray's operators of every kind: a test that misses "+" changed to
# "-" rarely notices "+" changed to "/".
CORE = [
    "NumberReplacer",
    "AddNot",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ZeroIterationForLoop",
    *(f"ReplaceUnaryOperator_{x}" for x in ("USub_UAdd", "Delete_Invert")),
    "ReplaceUnaryOperator_Delete_Not",
    *(
        f"ReplaceBinaryOperator_{x}"
        for x in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul")
    ),
    *(f"ReplaceBinaryOperator_{x}" for x in ("Mod_Mul", "Pow_Mul")),
    *(
        f"ReplaceComparisonOperator_{x}"
        for x in ("Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE")
    ),
    *(
        f"ReplaceComparisonOperator_{x}"
        for x in ("GtE_Gt", "GtE_Lt", "Eq_NotEq", "NotEq_Eq")
    ),
]


class _Leaf(Operator):
    """Replaces a node by other text, which `text` gives; None leaves the node."""

    def text(self, node: Any) -> str | None:
        raise NotImplementedError

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if self.text(node) is not None:
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        first, text = node.get_first_leaf(), self.text(node)
        first.value = text
        if hasattr(node, "children"):
            node.children = [first]
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return ()


class FlipAugmented(_Leaf):
    """x += y becomes x -= y."""

    OTHER = {"+=": "-=", "-=": "+=", "*=": "/=", "/=": "*="}

    def text(self, node: Any) -> str | None:
        return self.OTHER.get(node.value) if node.type == "operator" else None


class DropAugmented(_Leaf):
    """Removes x += y."""

    def text(self, node: Any) -> str | None:
        if node.type != "expr_stmt" or node.children[1].type != "operator":
            return None
        sign = node.children[1].value
        return "pass" if sign.endswith("=") and sign != "=" else None


class DropKeyword(_Leaf):
    """f(x, y=z) becomes f(x), which uses the default or fails."""

    def text(self, node: Any) -> str | None:
        if node.type == "argument" and node.children[1].get_code() == "=":
            return "**{}"
        return None


class SwapFunction(_Leaf):
    """maximum becomes minimum, a sum a mean, and so on."""

    OTHER = {
        **{"maximum": "minimum", "minimum": "maximum", "mean": "sum", "sum": "mean"},
        **{"ones": "zeros", "zeros": "ones", "ones_like": "zeros_like", "exp": "expm1"},
        **{"zeros_like": "ones_like", "repeat": "tile", "expm1": "exp", "sqrt": "abs"},
    }

    def text(self, node: Any) -> str | None:
        return self.OTHER.get(node.value) if node.type == "name" else None


class Mutant(NamedTuple):
    """operator: its name. line: its line. code: the whole changed module."""

    operator: str
    line: int
    code: str


def mutants(source: str) -> list[Mutant]:
    """All mutants that differ from each other and from the source, sorted by line."""
    operators = {name: plugins.get_operator(f"core/{name}")() for name in CORE}
    for own in (FlipAugmented, DropAugmented, DropKeyword, SwapFunction):
        operators[own.__name__] = own()
    found: dict[str, Mutant] = {}
    nodes = list(ast_nodes(get_ast(source)))
    for name, operator in operators.items():
        lines = [
            (node, start[0])
            for node in nodes
            for start, _ in operator.mutation_positions(node)
        ]
        for occurrence, (node, line) in enumerate(lines):
            # The single * in a signature is not a product.
            if node.parent is not None and node.parent.type in ("parameters", "param"):
                if node.type == "operator":
                    continue
            code = mutate_code(source, operator, occurrence)
            if code not in (None, source):
                found.setdefault(code, Mutant(name, line, code))
    return sorted(found.values(), key=lambda mutant: mutant.line)


def diff(source: str, mutant: str) -> str:
    """The changed lines."""
    lines = difflib.unified_diff(source.split("\n"), mutant.split("\n"), n=0)
    return "\n".join(x.strip("\n") for x in lines if x[:3] not in ("---", "+++"))


def preload() -> None:
    """Import all that the tests need except this repository.

    JAX must not have run anything, because a fork would lack its threads.
    """
    import pytest  # noqa: F401
    from jax._src import xla_bridge

    for name in OURS[:-1]:
        importlib.import_module(name)
    assert not xla_bridge.backends_are_initialized(), "importing ran something in JAX"
    for name in list(sys.modules):
        if name.split(".")[0] in OURS:
            del sys.modules[name]


def run_tests(folder: Path, tests: Sequence[str], timeout: float) -> int | None:
    """Exit status of pytest in a fork of this process; None if it was too slow."""
    child = os.fork()
    if child == 0:
        # A process group, so that all of it can be killed. A new session would not keep
        # the scheduling weight of this one.
        os.setpgrp()
        os.chdir(folder)
        log = os.open("mutant.log", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.path = [str(folder), *(p for p in sys.path if p != str(REPOSITORY))]
        status: int = 1
        with contextlib.suppress(SystemExit):
            import pytest

            flags = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
            status = int(pytest.main([*flags, "--no-header", *tests]))
        os._exit(status)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def run_together(folder: Path, tests: Sequence[str]) -> int:
    """As `run_tests`, in this process, so that the next mutant finds JAX's programs."""
    import pytest

    for name in list(sys.modules):
        if name.split(".")[0] in OURS:
            del sys.modules[name]
    importlib.invalidate_caches()
    sys.path = [str(folder), *(p for p in sys.path if p != str(REPOSITORY))]
    os.chdir(folder)
    flags = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header"]
    with open(folder / "mutant.log", "w") as log:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            status = int(pytest.main([*flags, *tests]))
    gc.unfreeze()  # `conftest.py` froze the modules, which the next mutant replaces.
    return status


def measure(
    module: str,
    folder: Path,
    *,
    every: int,
    line: int,
    minutes: float | None,
    together: bool,
    skip: Sequence[int],
) -> dict[str, Any]:
    """Run the tests of a module on every n-th of its mutants, from a line on.

    With `minutes` the order is random, so that the mutants that are run are a sample.
    """
    tests = MODULES[module]
    path = folder / "dppo_jax" / f"{module}.py"
    source = path.read_text()
    compiled = Path(importlib.util.cache_from_source(str(path)))

    def passes(code: str, timeout: float) -> bool:
        # Two mutants may have the same size and time, so Python would not recompile.
        compiled.unlink(missing_ok=True)
        path.write_text(code)
        if together:
            status: int | None = run_together(folder, tests)
        else:
            status = run_tests(folder, tests, timeout)
        assert status not in (4, 5), (folder / "mutant.log").read_text()
        return status == 0

    start = time.monotonic()
    if not passes(source, 600.0):
        sys.exit(f"{module}: its tests fail\n{(folder / 'mutant.log').read_text()}")
    seconds = time.monotonic() - start
    if passes("", 600.0):
        sys.exit(f"{module}: its tests pass without it, so they import another copy")
    everything = mutants(source)
    chosen = [m for m in everything if m.line >= line and m.line not in skip][::every]
    if minutes is not None:
        random.Random(0).shuffle(chosen)
    print(
        f"== {module}: {len(chosen)} mutants, at most {seconds:.0f} s each", flush=True
    )
    survivors = []
    done = 0
    for count, mutant in enumerate(chosen, start=1):
        if minutes is not None and time.monotonic() > start + 60 * minutes:
            break
        if count % 10 == 0:
            print(f"-- {count} of {len(chosen)}", flush=True)
        if passes(mutant.code, 20 + 4 * seconds):
            change = diff(source, mutant.code)
            survivors.append({"operator": mutant.operator, "diff": change})
            print(f"{mutant.operator}\n{change}", flush=True)
        done = count
    path.write_text(source)
    return {
        "there_are": len(everything),
        "mutants": done,
        "killed": done - len(survivors),
        "seconds": round(time.monotonic() - start),
        "survivors": survivors,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of mutants and survivors."""
    parser = argparse.ArgumentParser("tests.mutants")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(MODULES))
    parser.add_argument("--every", type=int, default=1, help="take every n-th mutant")
    parser.add_argument("--from-line", type=int, default=1, help="skip lines before it")
    parser.add_argument("--minutes", type=float, help="time for each module")
    parser.add_argument(
        "--together",
        action="store_true",
        help="all in one process: fast, but a mutant that never ends stops the run",
    )
    parser.add_argument(
        "--skip-line", type=int, nargs="*", default=[], help="lines not to change"
    )
    options = parser.parse_args(arguments)
    unknown = set(options.modules) - set(MODULES)
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; use {', '.join(MODULES)}")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".jax_cache"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    preload()
    RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "repository"
        folder.mkdir()
        for part in COPIED:
            source = REPOSITORY / part
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, folder / part)
        for module in options.modules or MODULES:
            result = measure(
                module,
                folder,
                every=options.every,
                line=options.from_line,
                minutes=options.minutes,
                together=options.together,
                skip=options.skip_line,
            )
            file = RESULTS / f"{module.replace('/', '.')}.json"
            file.write_text(json.dumps(result, indent=2) + "\n")
            print(
                f"== {module}: {result['killed']} of {result['mutants']} mutants were "
                f"noticed, in {result['seconds']} s; there are {result['there_are']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
