"""Read and write policies of other implementations: published DPPO code, LeRobot."""

from dppo_jax.interop.lerobot_policy import LerobotPolicy, load_lerobot_policy
from dppo_jax.interop.reference_checkpoint import (
    ReferenceCheckpoint,
    infer_settings,
    load_reference_checkpoint,
    save_reference_checkpoint,
)
from dppo_jax.interop.reference_params import (
    params_from_reference,
    params_to_reference,
    stack_critics,
)
from dppo_jax.interop.safetensors_file import load_safetensors
from dppo_jax.interop.torch_file import load_torch_file, save_torch_file

__all__ = [
    "LerobotPolicy",
    "ReferenceCheckpoint",
    "infer_settings",
    "load_lerobot_policy",
    "load_reference_checkpoint",
    "load_safetensors",
    "load_torch_file",
    "params_from_reference",
    "params_to_reference",
    "save_reference_checkpoint",
    "save_torch_file",
    "stack_critics",
]
