"""Demonstration data: readers and the windows that training draws from."""

from dppo_jax.demonstrations.dataset import (
    Episodes,
    Windows,
    gather,
    summary,
    windows,
)
from dppo_jax.demonstrations.dppo_npz import load_dppo_npz, save_dppo_npz

__all__ = [
    "Episodes",
    "Windows",
    "gather",
    "load_dppo_npz",
    "save_dppo_npz",
    "summary",
    "windows",
]
