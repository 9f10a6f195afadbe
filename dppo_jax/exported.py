"""A policy as one file that JAX runs without this package.

`export_policy` compiles the function of a policy, with its parameters, bounds and
random numbers inside, to StableHLO by `jax.export`, whose files later releases of JAX
load for at least six months (JAX's documentation, "Exporting and serializing staged-out
computations"). `write_exported` adds what a reader needs: the weights as
`.safetensors`, a description in JSON, a loader of one file, and if asked the policy as
ONNX for programs without JAX.
"""

import importlib.resources
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from dppo_jax import onnx_file
from dppo_jax.compared import Difference, compare
from dppo_jax.deploy import LoadedPolicy, with_constants
from dppo_jax.errors import SettingsError
from dppo_jax.interop.safetensors_file import save_safetensors
from dppo_jax.types import Array

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
PROGRAM, WEIGHTS, ABOUT = "policy.stablehlo", "weights.safetensors", "policy.json"
LOADER, ONNX = "exported_policy.py", "policy.onnx"


def export_policy(
    policy: LoadedPolicy,
    *,
    deterministic: bool = True,
    platforms: Sequence[str] = ("cpu", "cuda"),
) -> export.Exported:
    """Export (seed [] uint32, entries of an observation [To, ...]) -> actions [n, Da].

    Observations and actions are in the units of the task; the actions are those from
    the newest observation on. The seed decides all random numbers of a chunk, those of
    the start of its denoising chain included.

    Args:
        policy: with `act`, as from `load_policy`.
        deterministic: see `types.Act`.
        platforms: of `PLATFORMS`, those that can run the file.

    Raises:
        SettingsError: an unknown platform, a policy without `act`, or a missing
            package.
    """
    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if not set(platforms) <= set(PLATFORMS) or here not in platforms:
        raise SettingsError(
            f"platforms={','.join(platforms)} must be some of {', '.join(PLATFORMS)}, "
            f"and {here}, on which the program is compared with the policy, one of "
            "them."
        )
    if importlib.util.find_spec("flatbuffers") is None:
        raise SettingsError(
            "JAX writes exported programs with the package flatbuffers, which is not "
            'installed; run: pip install -e ".[deploy]" -c constraints.txt'
        )
    act = with_constants(policy, deterministic=deterministic)

    def run(seed: Array, obs: Mapping[str, Array]) -> Array:
        key = jax.random.key(seed, impl="threefry2x32")
        return act(key, dict(obs))

    return export.export(jax.jit(run), platforms=tuple(platforms))(
        jax.ShapeDtypeStruct((), np.uint32), dict(policy.reads)
    )


def write_exported(
    folder: str | os.PathLike,
    policy: LoadedPolicy,
    *,
    deterministic: bool = True,
    platforms: Sequence[str] = ("cpu", "cuda"),
    onnx: bool = False,
    about: Mapping[str, Any] | None = None,
) -> Difference:
    """Write an exported policy to a new folder, and compare it with the policy.

    The folder holds `policy.stablehlo`, the program; `exported_policy.py`, which loads
    it without this package; `policy.json`, its shapes, bounds and origin; and
    `weights.safetensors`, the parameters under their names in this package, for other
    programs. The folder appears only when all of them are written.

    Args:
        onnx: also write `policy.onnx`, see `onnx_file`.
        about: entries to add to `policy.json`, such as the run.

    Returns:
        The difference of `policy.stablehlo`; `policy.json` has that of `policy.onnx`.

    Raises:
        SettingsError: the folder exists, or as `export_policy`.
        RuntimeError: a written program acts otherwise than the policy.
    """
    folder = Path(folder)
    if folder.exists():
        raise SettingsError(f"{folder} exists; give another name.")
    if onnx:
        onnx_file.check_installed()
    program = export_policy(policy, deterministic=deterministic, platforms=platforms)
    content = bytes(program.serialize())
    difference = _compare(policy, content, deterministic)
    other = onnx_file.to_onnx(policy, deterministic=deterministic) if onnx else None
    (shape,) = (x.shape for x in program.out_avals)
    normalizer, env = policy.normalizer, policy.config.get("env")
    description = {
        "format": 1,
        "observation": {
            name: {"shape": list(x.shape), "dtype": str(x.dtype)}
            for name, x in policy.reads.items()
        },
        "actions": {"shape": list(shape), "dtype": "float32"},
        "deterministic": deterministic,
        "platforms": list(program.platforms),
        "jax": jax.__version__,
        "calling_convention_version": program.calling_convention_version,
        "bounds": {
            name: np.asarray(x).tolist() for name, x in normalizer._asdict().items()
        },
        "largest_difference": difference.largest,
        "executed": env.get("executed") if isinstance(env, dict) else None,
    }
    if other is not None:
        description["onnx"] = {
            "noise": dict(other.noise),
            "largest_difference": other.difference.largest,
        }
    description = {**(about or {}), **description}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as new:
        inside = Path(new) / folder.name
        inside.mkdir()
        (inside / PROGRAM).write_bytes(content)
        if other is not None:
            (inside / ONNX).write_bytes(other.content)
        (inside / ABOUT).write_text(json.dumps(description, indent=2) + "\n")
        save_safetensors(inside / WEIGHTS, _named_weights(policy.params))
        loader = importlib.resources.files("dppo_jax") / LOADER
        with importlib.resources.as_file(loader) as source:
            shutil.copyfile(source, inside / LOADER)
        inside.rename(folder)
    return difference


def _compare(policy: LoadedPolicy, content: bytes, deterministic: bool) -> Difference:
    """Compare a serialized program with the policy; raises as `compared.compare`."""
    call = jax.jit(export.deserialize(bytearray(content)).call)

    def chunks(seed: int, obs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        key = jax.random.key(seed, impl="threefry2x32")
        wanted = policy.sample(key, obs, deterministic=deterministic)
        return np.asarray(call(np.uint32(seed), obs)), wanted

    return compare(policy, chunks, what="the exported program")


def _named_weights(params: Any) -> dict[str, np.ndarray]:
    """Leaves of a tree by their paths, such as `trained/params/layer_0/kernel`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
