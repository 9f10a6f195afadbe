"""A policy from its checkpoint alone: what acts, its parameters and its bounds."""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dppo_jax import policies
from dppo_jax.normalize import Normalizer
from dppo_jax.training.checkpoint import (
    check_matches,
    optional_as,
    read_policy,
    with_types,
)
from dppo_jax.types import Act, PyTree


class LoadedPolicy(NamedTuple):
    """A policy as it was saved.

    params: what acts, as `act` takes it.
    act: see `types.Act`, in normalised units; None where neither the configuration nor
        the caller tells what the policy is made of.
    normalizer: bounds of observations and actions it was trained with.
    config: the whole configuration of its run, plain dictionaries.
    iteration: when it was saved.
    """

    params: PyTree
    act: Act | None
    normalizer: Normalizer
    config: dict[str, Any]
    iteration: int


def load_policy(
    run_dir: str | os.PathLike,
    checkpoint: int | str = "latest",
    *,
    policy: Any = None,
) -> LoadedPolicy:
    """Read a policy from a run directory and rebuild what it needs to act.

    Args:
        checkpoint: an iteration, "latest" or "best".
        policy: what was trained, with `init` and `act`, for a run that
            `dppo_jax.train` wrote without a configuration. None: from `config.json`;
            where that says nothing either, parameters come as nested dictionaries.

    Raises:
        ValueError: no such run, nothing saved yet, no such checkpoint, a damaged one,
            or parameters that the configured policy does not have.
    """
    saved = read_policy(run_dir, checkpoint)
    if policy is None and "model" in saved.config:
        action_dim = len(saved.normalizer.action_min)
        policy = policies.make_saved_policy(
            saved.config["model"], action_dim=action_dim
        )
    if policy is None:
        return LoadedPolicy(act=None, **saved._asdict())
    env = saved.config.get("env", {})
    shape = (1, env.get("history", 1), len(saved.normalizer.obs_min))
    obs = {"state": jax.ShapeDtypeStruct(shape, jnp.float32)}
    expected = jax.eval_shape(policy.init, jax.random.key(0), obs)
    params = with_types(saved.params, expected)
    check_matches(
        params,
        optional_as(expected, params),
        what=f"the policy of {run_dir}",
        cure="restore the config.json that it was trained with.",
    )
    return LoadedPolicy(act=policy.act, **saved._replace(params=params)._asdict())
