"""Run simulators that are not written in JAX as a `VecEnv` with ordered callbacks.

Host processes hold the environments and their states. A step of the VecEnv is one
callback, which sends whole action chunks to the processes and returns their results.
Chunks, history, normaliser and time limit are the same as those of the wrappers of an
`Env`, and the TimeStep keeps the terminal observation.

A program with such a callback is not pure, which has three consequences:

- Only the newest state can be stepped; an older one raises an error.
- There is one batch of simulators per VecEnv; `vmap` and `shard_map` raise an error.
- Checkpoints do not hold the state of the simulators. A resumed run continues with the
  saved parameters, optimizers and keys, but starts new episodes. The interrupted ones
  are truncated at their last known observation. Therefore the run differs from an
  uninterrupted one, unless `rollout.reset_at_iteration` starts new episodes anyway.
"""

import secrets
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from dppo_jax.envs.adapters.host_task import HostTask, look_at
from dppo_jax.envs.wrappers import action_notes, check_sizes
from dppo_jax.errors import SettingsError
from dppo_jax.normalize import Normalizer, policy_obs, unnormalize_action
from dppo_jax.runtime import num_cores
from dppo_jax.types import Array, Metrics, Obs, PyTree, TimeStep, VecEnv


class HostState(NamedTuple):
    """State of a VecEnv on the host; all leaves but the token have a leading axis [B].

    token: [2] uint32, identity of the simulators and how often they were called.
    obs: the observation before the next action.
    episode_return, episode_length: of the running episode; the length in control steps.
    metrics: those of the last step.
    """

    token: Array
    obs: Obs
    episode_return: Array
    episode_length: Array
    metrics: Metrics


def host_vec_env(
    task: HostTask,
    num_envs: int,
    *,
    chunk: int = 1,
    history: int = 1,
    max_steps: int | None = None,
    limit_terminates: bool = False,
    normalizer: Normalizer | None = None,
    trace: Sequence[str] = (),
) -> VecEnv:
    """Run `num_envs` simulators in host processes.

    `reset(keys)` restarts all of them, each with a seed from its key. After that, an
    environment depends only on its seed and its actions. The processes end with the
    program, or when nothing refers to the VecEnv any more; compiled programs refer to
    it until `jax.clear_caches()`.

    Args:
        chunk: Ta, control steps per step; actions after the end of an episode are not
            executed.
        history: To, number of observations, the newest last.
        max_steps: control steps until an episode is truncated, in addition to the
            environment's own time limit; None: no additional limit.
        limit_terminates: terminate it there instead, see `wrappers.time_limit`.
        normalizer: bounds for observations and actions; None: task units.
        trace: names of metrics to return as `TimeStep.trace`, [B, Ta].

    Returns:
        A VecEnv with actions [B, Ta, Da] and observations `{"state": [B, To, Do]}`;
        metrics gain `episode_return` and, in control steps, `episode_length`.

    Raises:
        SettingsError: a task that cannot be made, spaces that are not boxes, numbers
            below one, a normalizer of other sizes, an unknown `trace`.
    """
    # Gymnasium is an optional package, so import it only here.
    from dppo_jax.envs.adapters.workers import make_groups

    for name, value in dict(
        num_envs=num_envs, chunk=chunk, history=history, max_steps=max_steps
    ).items():
        if value is not None and value < 1:
            raise SettingsError(f"{name}={value} must be at least 1.")
    processes = num_cores() if task.processes is None else task.processes
    if processes < 0:
        raise SettingsError(
            f"processes={processes} must not be negative; use 0 to run the simulators "
            "in this process."
        )
    plan = look_at(task)._replace(
        chunk=chunk,
        history=history,
        max_steps=max_steps,
        limit_terminates=limit_terminates,
    )
    unknown = sorted(set(trace) - set(plan.metrics))
    if unknown:
        raise SettingsError(
            f"Cannot trace {unknown}; metrics are {sorted(plan.metrics)}."
        )
    plan = plan._replace(trace=tuple(trace))
    (action_dim,) = plan.action_shape
    notes: tuple[str, ...] = ()
    if normalizer is not None:
        check_sizes(normalizer, plan.obs_size, action_dim)
        notes = action_notes(task.name, normalizer, plan.action_range)
    groups = make_groups(plan, num_envs, min(processes, num_envs))
    results = _results(plan, num_envs)
    host = Host(groups, results, task.name)
    alone = _refuse_batches(task.name, num_envs)

    def normalized(obs: Array) -> Obs:
        return {"state": obs if normalizer is None else policy_obs(normalizer, obs)}

    def reset(keys: Array) -> HostState:
        keys = alone(keys)
        chex.assert_shape(keys, (num_envs,))
        seeds = jax.vmap(lambda key: jax.random.bits(key))(keys)
        first = {name: results[name] for name in ("token", "obs")}
        answer = io_callback(host.reset, first, seeds, ordered=True)
        return HostState(
            token=answer["token"],
            obs=normalized(answer["obs"]),
            episode_return=jnp.zeros(num_envs),
            episode_length=jnp.zeros(num_envs),
            metrics={name: jnp.zeros(num_envs) for name in plan.metrics},
        )

    def step(state: HostState, action: Array) -> tuple[HostState, TimeStep]:
        chex.assert_shape(action, (num_envs, chunk, action_dim))
        state, action = alone((state, action))
        if normalizer is not None:
            action = unnormalize_action(normalizer, action)
        answer = io_callback(host.step, results, state.token, action, ordered=True)
        # The simulators of a state from a checkpoint no longer exist, so the results of
        # their episodes are those in the state.
        begun = answer["begun_anew"] > 0
        metrics = {
            name: jnp.where(begun, state.metrics[name], answer["metrics"][:, i])
            for i, name in enumerate(plan.metrics)
        }
        next_obs = normalized(answer["next_obs"])
        time_step = TimeStep(
            obs=jax.tree.map(lambda x, y: jnp.where(begun, x, y), state.obs, next_obs),
            reward=answer["reward"],
            terminated=answer["terminated"],
            truncated=answer["truncated"],
            metrics=metrics,
            trace={k: answer["trace"][..., i] for i, k in enumerate(plan.trace)},
        )
        episode_return = state.episode_return + time_step.reward
        episode_length = jnp.where(begun, state.episode_length, answer["length"])
        reported = dict(
            metrics,
            episode_return=episode_return,
            episode_length=episode_length,
            diverged=answer["diverged"],
        )
        done = jnp.maximum(time_step.terminated, time_step.truncated) > 0
        state = HostState(
            token=answer["token"],
            obs=normalized(answer["obs"]),
            episode_return=jnp.where(done, 0.0, episode_return),
            episode_length=jnp.where(done, 0.0, episode_length),
            metrics=metrics,
        )
        return state, time_step._replace(metrics=reported)

    return VecEnv(
        reset=reset,
        step=step,
        obs_shape={"state": (history, plan.obs_size)},
        action_shape=(chunk, action_dim),
        max_steps=None if max_steps is None else -(-max_steps // chunk),
        num_envs=num_envs,
        notes=notes,
    )


class Host:
    """The simulators behind one VecEnv, and how often they were called."""

    def __init__(self, groups: Any, results: Mapping[str, Any], name: str) -> None:
        """`groups` is from `make_groups` and is closed with this object; `results` has
        the shapes and types that `step` returns."""
        self.groups, self.results, self.name = groups, results, name
        # A random identity tells the simulators of two programs apart.
        self.identity, self.count = secrets.randbits(32), 0
        # This also runs at the exit of the program. Terminate the processes, because
        # waiting for them could block and they have nothing to save.
        terminate = {"terminate": True} if hasattr(groups, "processes") else {}
        weakref.finalize(self, groups.close, **terminate)

    def reset(self, seeds: Any) -> dict[str, np.ndarray]:
        """Restart all environments; seeds [B] uint32."""
        # Gymnasium requires seeds that fit into a signed integer.
        seeds = np.asarray(seeds) >> 1
        told, _ = self.groups.reset(options={"seeds": seeds})
        return self._answer({"obs": told["obs"]})

    def step(self, token: Any, action: Any) -> dict[str, np.ndarray]:
        """Execute chunks [B, Ta, Da].

        If `token` belongs to other simulators, truncate and restart all episodes.

        Raises:
            SettingsError: `token` is not that of the last call.
        """
        identity, count = (int(x) for x in np.asarray(token))
        action = np.asarray(action)
        if identity != self.identity:
            seeds = np.random.SeedSequence([identity, count])
            nothing = {k: np.zeros(v.shape, v.dtype) for k, v in self.results.items()}
            nothing["truncated"][:] = nothing["begun_anew"][...] = 1
            return nothing | self.reset(seeds.generate_state(len(action)))
        if count != self.count:
            raise SettingsError(
                f"{self.name}: this state is {self.count - count} calls old, but "
                "simulators on the host cannot go back; step only the newest state, "
                "or reset."
            )
        workers, rows = self.groups.num_envs, self.groups.single_action_space.shape[0]
        padded = np.zeros((workers * rows, *action.shape[1:]), np.float32)
        padded[: len(action)] = action
        told, *_ = self.groups.step(padded.reshape(workers, rows, *action.shape[1:]))
        return self._answer(told) | {"begun_anew": np.zeros((), np.float32)}

    def _answer(self, told: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Convert rows [W, G, ...] of the processes to [B, ...]; add a new token."""
        self.count += 1
        answer = {"token": np.array([self.identity, self.count], np.uint32)}
        for name, rows in told.items():
            flat = rows.reshape(rows.shape[0] * rows.shape[1], *rows.shape[2:])
            answer[name] = flat[: self.results[name].shape[0]]
        return answer


def _results(plan: Any, num_envs: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types that `Host.step` returns."""
    shapes: dict[str, tuple[int, ...]] = dict(
        obs=(num_envs, plan.history, plan.obs_size),
        next_obs=(num_envs, plan.history, plan.obs_size),
        reward=(num_envs,),
        terminated=(num_envs,),
        truncated=(num_envs,),
        diverged=(num_envs,),
        length=(num_envs,),
        metrics=(num_envs, len(plan.metrics)),
        trace=(num_envs, plan.chunk, len(plan.trace)),
        begun_anew=(),
    )
    results = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()}
    return results | {"token": jax.ShapeDtypeStruct((2,), jnp.uint32)}


def _refuse_batches(name: str, num_envs: int) -> Callable[[PyTree], PyTree]:
    """Make an identity function that raises SettingsError in vmap and shard_map."""
    cure = (
        f"{name} runs in host processes as one batch of num_envs={num_envs} simulators "
        "per program; raise num_envs instead, and run each seed in its own program."
    )

    @jax.custom_batching.custom_vmap
    def single(x: PyTree) -> PyTree:
        return x

    @single.def_vmap
    def _(axis_size: int, in_batched: Any, x: PyTree) -> Any:
        raise SettingsError(f"No vmap over host environments: {cure}")

    def alone(x: PyTree) -> PyTree:
        if jax.sharding.get_abstract_mesh().manual_axes:
            raise SettingsError(f"No shard_map over host environments: {cure}")
        return single(x)

    return alone
