"""A policy as an ONNX file, which many runtimes and languages load.

`jax2onnx` writes it, and onnxruntime compares it with the policy. ONNX has no generator
like JAX's, so the random numbers of a chunk are inputs (`noise_inputs`).
"""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from dppo_jax.compared import Difference, compare
from dppo_jax.deploy import LoadedPolicy, with_constants
from dppo_jax.errors import SettingsError
from dppo_jax.noise_inputs import Opened, open_draws
from dppo_jax.types import Array

_PACKAGES = ("jax2onnx", "onnxruntime")
ACTIONS = "actions"


class OnnxProgram(NamedTuple):
    """A policy in ONNX.

    content: of the file.
    noise: the shape of every input that takes standard-normal numbers.
    difference: between the file, run by onnxruntime, and the policy.
    """

    content: bytes
    noise: Mapping[str, tuple[int, ...]]
    difference: Difference


def check_installed() -> None:
    """Raise SettingsError if a package that writes ONNX is missing."""
    missing = [x for x in _PACKAGES if importlib.util.find_spec(x) is None]
    if missing:
        raise SettingsError(
            f"policy.onnx is written with {' and '.join(missing)}, not installed; run: "
            'pip install -e ".[onnx]" -c constraints.txt'
        )


def to_onnx(policy: LoadedPolicy, *, deterministic: bool = True) -> OnnxProgram:
    """Convert (noise, entries of an observation [To, ...]) -> actions [n, Da].

    Observations and actions are in the units of the task, and weights, bounds and the
    denoising chain inside, as in `exported.export_policy`. The inputs are named as the
    entries of an observation, and `noise`, or `noise_0`, `noise_1` ... if there are
    several arrays of standard-normal numbers. A deterministic policy may have none. The
    output is `actions`.

    Args:
        policy: with `act`, as from `load_policy`.
        deterministic: see `types.Act`.

    Raises:
        SettingsError: a missing package, a policy without `act`, one that cannot be
            converted, or whose file acts otherwise than the policy.
    """
    check_installed()
    act = with_constants(policy, deterministic=deterministic)
    opened = open_draws(act, dict(policy.reads))
    single = len(opened.shapes) == 1
    names = ["noise"] if single else [f"noise_{i}" for i in range(len(opened.shapes))]
    noise = dict(zip(names, opened.shapes))
    content = _convert(policy, opened, list(noise))
    call = run_by_onnxruntime(content)
    recorded = jax.jit(opened.recorded)

    def chunks(seed: int, obs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        wanted, numbers = recorded(jax.random.key(seed), obs)
        given = dict(zip(noise, map(np.asarray, numbers), strict=True))
        return call({**given, **obs}), np.asarray(wanted)

    try:
        difference = compare(policy, chunks, what="policy.onnx")
    except RuntimeError as error:
        raise SettingsError(
            f"jax2onnx converts this policy wrongly ({error}); leave out --onnx."
        ) from error
    return OnnxProgram(content, noise, difference)


def run_by_onnxruntime(content: bytes) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """Make (inputs by name) -> actions of an ONNX file, computed in one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # Errors; constants without a use are warnings.
    try:
        session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # Its classes have no common base but this.
        raise SettingsError(
            f"onnxruntime cannot run this policy ({_first_line(error)}); leave out "
            "--onnx."
        ) from error
    return lambda inputs: session.run([ACTIONS], inputs)[0]


def _convert(policy: LoadedPolicy, opened: Opened, noise: list[str]) -> bytes:
    names = [*noise, *policy.reads]
    inputs = [jax.ShapeDtypeStruct(shape, np.float32) for shape in opened.shapes]

    def run(*arrays: Array) -> Array:
        numbers, entries = arrays[: len(noise)], arrays[len(noise) :]
        return opened.run(numbers, dict(zip(policy.reads, entries, strict=True)))

    with _quiet():
        import jax2onnx

        try:
            model = jax2onnx.to_onnx(
                run,
                [*inputs, *policy.reads.values()],
                model_name="policy",
                input_names=names,
                output_names=[ACTIONS],
            )
        except SettingsError:
            raise
        except Exception as error:  # It raises many kinds, also for what is not known.
            raise SettingsError(
                f"jax2onnx cannot convert this policy ({_first_line(error)}); leave "
                "out --onnx."
            ) from error
    return model.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the converter says about functions that no policy uses."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
