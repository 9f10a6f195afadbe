"""Environments: tasks, wrappers, physics engines, adapters, vectorisation."""

from dppo_jax.envs.adapters import make_host_task
from dppo_jax.envs.adapters.host import host_vec_env
from dppo_jax.envs.check import check_env
from dppo_jax.envs.core import VecState, vectorize
from dppo_jax.envs.quarantine import quarantine
from dppo_jax.envs.tasks import TASKS, make_task
from dppo_jax.envs.wrappers import (
    chunk_actions,
    normalize,
    stack_observations,
    time_limit,
)

__all__ = [
    "TASKS",
    "VecState",
    "check_env",
    "chunk_actions",
    "host_vec_env",
    "make_host_task",
    "make_task",
    "normalize",
    "quarantine",
    "stack_observations",
    "time_limit",
    "vectorize",
]
