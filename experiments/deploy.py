"""Write a policy for a robot: python -m experiments.deploy RUN_DIR OUT

OUT is a new folder that runs without this package: `policy.stablehlo`, the policy with
its weights, bounds and chunks inside; `exported_policy.py`, which loads it and needs
JAX, NumPy and flatbuffers; `policy.json`, its shapes and its origin;
`weights.safetensors`. Before it is written, the program is compared with the policy.
--checkpoint=best takes another checkpoint, --platforms=cpu,cuda,tpu other devices, and
--exploring a policy that explores as in training.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from dppo_jax import exported, runtime
from dppo_jax.deploy import load_policy
from dppo_jax.errors import SettingsError
from dppo_jax.training.run_directory import check_folder
from experiments import command_line, processes

_PLATFORMS = flags.DEFINE_list(
    "platforms", ["cpu", "cuda"], "devices that OUT runs on: cpu, cuda, rocm, tpu."
)
_EXPLORING = flags.DEFINE_bool("exploring", False, "explore, as in training.")


def main(
    run_dir: str,
    out: str,
    checkpoint: int | str = "latest",
    platforms: Sequence[str] = ("cpu", "cuda"),
    exploring: bool = False,
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
    return out


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
        )
