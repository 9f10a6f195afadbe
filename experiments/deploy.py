"""Write a policy for a robot: python -m experiments.deploy RUN_DIR OUT

OUT is a new folder that runs without this package: `policy.stablehlo`, the policy with
its weights, bounds and chunks inside; `exported_policy.py`, which loads it and needs
JAX, NumPy and flatbuffers; `policy.json`, its shapes and its origin;
`weights.safetensors`. Before it is written, the program is compared with the policy.
--checkpoint=best takes another checkpoint, --platforms=cpu,cuda,tpu other devices, and
--exploring a policy that explores as in training. --onnx adds `policy.onnx`, whose
random numbers are inputs, and measures how long a chunk takes with onnxruntime and JAX;
it needs the extra `onnx`.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from dppo_jax import exported, runtime
from dppo_jax.compared import random_observations
from dppo_jax.deploy import LoadedPolicy, load_policy
from dppo_jax.errors import SettingsError
from dppo_jax.exported_policy import ExportedPolicy
from dppo_jax.training.run_directory import check_folder
from experiments import command_line, processes

_PLATFORMS = flags.DEFINE_list(
    "platforms", ["cpu", "cuda"], "devices that OUT runs on: cpu, cuda, rocm, tpu."
)
_EXPLORING = flags.DEFINE_bool("exploring", False, "explore, as in training.")
_ONNX = flags.DEFINE_bool("onnx", False, "also write policy.onnx.")
_WARM_CALLS, _TIMED_CALLS = 20, 200


def main(
    run_dir: str,
    out: str,
    checkpoint: int | str = "latest",
    platforms: Sequence[str] = ("cpu", "cuda"),
    exploring: bool = False,
    onnx: bool = False,
) -> str:
    """Run the program; returns the folder."""
    _check_new_folder(out)
    policy = load_policy(run_dir, checkpoint)
    env = policy.config.get("env")
    env = env if isinstance(env, dict) else {}
    difference = exported.write_exported(
        out,
        policy,
        deterministic=not exploring,
        platforms=platforms,
        onnx=onnx,
        about={
            "run": str(Path(run_dir).absolute()),
            "checkpoint": policy.iteration,
            "task": env.get("task"),
            "score": policy.about.get("score"),
        },
    )
    size = sum(path.stat().st_size for path in Path(out).iterdir()) / 1e6
    print(
        f"{run_dir}, checkpoint {policy.iteration}, written to {out}: {size:.1f} MB\n"
        f"largest difference of an action from the policy: {difference.largest:.2g}\n"
        f"try it: python {out}/{exported.LOADER}"
    )
    if onnx:
        _tell_onnx(out, policy)
    return out


def _tell_onnx(out: str, policy: LoadedPolicy) -> None:
    """Print how far policy.onnx is from the policy, and the times of both programs."""
    programs = {
        "onnxruntime, one thread": ExportedPolicy(out, runtime="onnx"),
        "JAX": ExportedPolicy(out),
    }
    largest = programs["JAX"].about["onnx"]["largest_difference"]
    print(f"{exported.ONNX}: largest difference of an action {largest:.2g}")
    (obs,) = random_observations(policy, 1)
    for name, program in programs.items():
        p50, p99 = _latency(program, obs)
        print(f"a chunk by {name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")


def _latency(
    program: ExportedPolicy, obs: Mapping[str, np.ndarray]
) -> tuple[float, float]:
    """Milliseconds of a chunk that half, and that 99 of 100 calls do not exceed."""
    seconds = []
    for seed in range(_WARM_CALLS + _TIMED_CALLS):
        began = time.perf_counter()
        program.chunk(obs, seed)
        seconds.append(time.perf_counter() - began)
    p50, p99 = np.percentile(seconds[_WARM_CALLS:], [50, 99])
    return 1000 * float(p50), 1000 * float(p99)


def _check_new_folder(folder: str) -> None:
    """Raise SettingsError if the folder exists, or cannot be made."""
    if not folder or Path(folder).exists():
        raise SettingsError(f"{folder or repr(folder)} exists; give another name.")
    try:
        check_folder(folder)
    except SettingsError as error:
        about = str(error).replace("pass another --config.run_dir", "give another name")
        raise SettingsError(about) from None


if __name__ == "__main__":
    with processes.errors_in_one_line():
        given = command_line.parse_flags(sys.argv)
        if len(given) != 2:
            raise SettingsError(f"{given} given; write RUN_DIR OUT.")
        runtime.configure()
        main(
            given[0],
            given[1],
            command_line.CHECKPOINT.value,
            platforms=tuple(_PLATFORMS.value),
            exploring=_EXPLORING.value,
            onnx=_ONNX.value,
        )
