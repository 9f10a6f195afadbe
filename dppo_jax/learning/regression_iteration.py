"""The iteration that DRWR and DAWR share: collect, keep, regress."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dppo_jax.errors import SettingsError
from dppo_jax.learning.optimizers import Trained, Trainer
from dppo_jax.learning.quarantine import sound_transitions
from dppo_jax.policies import ChainPolicy, PolicyParams
from dppo_jax.rollout import env_keys, episode_means, restart, rollout
from dppo_jax.types import (
    OF_ENVIRONMENT,
    Algorithm,
    Array,
    Metrics,
    Obs,
    PyTree,
    TimeStep,
    Transition,
    VecEnv,
)


class RegressionState(NamedTuple):
    """The training state between two iterations; a checkpoint of it resumes exactly.

    actor: of one network, which makes all denoising steps.
    memory: what the algorithm keeps from one iteration to the next, any pytree.
    """

    actor: Trained
    memory: Any
    env: Any
    key: Array
    iteration: Array


class Rows(NamedTuple):
    """The stored data of a roll-out; leaves [T, B, ...].

    chunk: the whole chunk [T, B, Ta, Da], also actions that were not executed.
    next_obs: the observation that followed, before any reset.
    """

    obs: Obs
    chunk: Array
    reward: Array
    next_obs: Obs
    terminated: Array
    truncated: Array


class Learner(NamedTuple):
    """The functions that one algorithm adds to the shared iteration.

    init: (key, obs [1, ...], one row without leading axes) -> memory.
    store: (memory, Rows, diverged) -> (memory, data), with what `update` needs of the
        roll-out. `diverged`, [T, B] or None, says which rows stand in for broken ones.
    update: (state, data, key) -> (state, metrics), all updates of an iteration.
    finite: names of the metrics that must be finite.
    """

    init: Callable[[Array, Obs, Rows], Any]
    store: Callable[[Any, Rows, Array | None], tuple[Any, Any]]
    update: Callable[[RegressionState, Any, Array], tuple[RegressionState, Metrics]]
    finite: tuple[str, ...] = ()


def weighted_regression(
    env: VecEnv,
    policy: ChainPolicy,
    trainer: Trainer,
    learner: Learner,
    *,
    num_chunks: int,
    reset_at_iteration: bool,
    name: str,
) -> Algorithm:
    """Make an Algorithm of two phases, roll-out and updates, for one device.

    Args:
        env: its action is a chunk, [Ta, Da].
        policy: of any kind that can be cloned. Its tuned network makes all moves, also
            those that the frozen one would make.
        trainer: of the policy.
        num_chunks: action chunks per environment and iteration.
        reset_at_iteration: start every iteration with new episodes.
        name: of the algorithm, for messages.

    Returns:
        An Algorithm; `init(key, params=None)` starts from the tuned network of the
        given parameters, or from a new one.

    Raises:
        SettingsError: a policy that cannot be cloned, or an environment without chunks.
    """
    check(env, policy, num_chunks, name=name)
    num_envs = env.num_envs

    def acting(state: RegressionState) -> PolicyParams:
        return PolicyParams(base=state.actor.params, tuned=state.actor.params)

    def explore(params: PolicyParams, keys: Array, obs: Obs) -> tuple[Array, PyTree]:
        chunk, _ = policy.act(params, keys, obs)
        return chunk, chunk

    def record(transition: Transition, outcome: TimeStep) -> Rows:
        del outcome
        return Rows(
            obs=transition.obs,
            chunk=transition.extras,
            reward=transition.reward,
            next_obs=transition.next_obs,
            terminated=transition.terminated,
            truncated=transition.truncated,
        )

    def collect(
        params: PolicyParams, env_state: Any, keys: Array
    ) -> tuple[Any, Rows, Metrics]:
        def act(keys: Array, obs: Obs) -> tuple[Array, PyTree]:
            return explore(params, keys, obs)

        return rollout(env, act, env_state, keys, num_chunks, record)

    def init(key: Array, params: PolicyParams | None = None) -> RegressionState:
        env_key, policy_key, memory_key, key = jax.random.split(key, 4)
        keys = env_keys(env_key, num_envs)
        env_state = env.reset(keys)
        obs = jax.tree.map(lambda x: x[:1], env_state.obs)
        network = (policy.init(policy_key, obs) if params is None else params).tuned
        both = PolicyParams(base=network, tuned=network)
        _, rows, _ = jax.eval_shape(collect, both, env_state, keys)
        row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), rows)
        return RegressionState(
            actor=trainer.init(network),
            memory=learner.init(memory_key, obs, row),
            env=env_state,
            key=key,
            iteration=jnp.zeros((), jnp.int32),
        )

    def collect_and_store(
        state: RegressionState,
    ) -> tuple[RegressionState, Any, Metrics]:
        """Run the first phase of an iteration."""
        key, reset_key, act_key = jax.random.split(state.key, 3)
        env_state = state.env
        if reset_at_iteration:
            env_state = restart(env, env_state, env_keys(reset_key, num_envs))
        env_state, rows, metrics = collect(
            acting(state), env_state, env_keys(act_key, num_envs)
        )
        done = jnp.maximum(rows.terminated, rows.truncated)
        episodes = episode_means(done, rows.reward, rows.obs, metrics)
        diverged = metrics.get("diverged")
        rows = sound_transitions(rows, diverged)
        memory, data = learner.store(state.memory, rows, diverged)
        return state._replace(env=env_state, memory=memory, key=key), data, episodes

    def learn(
        state: RegressionState, data: Any, metrics: Metrics
    ) -> tuple[RegressionState, Metrics]:
        """Run the second phase of an iteration."""
        key, update_key = jax.random.split(state.key)
        before = state.actor.params
        state, losses = learner.update(state, data, update_key)
        iteration = state.iteration + 1
        change = optax.tree.norm(optax.tree.sub(state.actor.params, before))
        counts = {
            "params_change": change,
            "env_steps": iteration * float(num_envs * num_chunks * env.action_shape[0]),
        }
        return state._replace(key=key, iteration=iteration), metrics | losses | counts

    def step(state: RegressionState) -> tuple[RegressionState, Metrics]:
        return learn(*collect_and_store(state))

    return Algorithm(
        init=jax.jit(init),
        step=step,
        params=acting,
        act=policy.act,
        finite=(*OF_ENVIRONMENT, "policy_loss", "params_change", *learner.finite),
        phases=(collect_and_store, learn),
    )


def check(env: VecEnv, policy: ChainPolicy, num_chunks: int, *, name: str) -> None:
    """Raise SettingsError if algorithm `name` cannot collect or clone with these."""
    if not isinstance(policy, ChainPolicy):
        raise SettingsError(
            f"{name} clones its own actions, which a {type(policy).__name__} cannot; "
            "set model.kind='diffusion', 'flow', 'gaussian' or 'gmm'."
        )
    if len(env.action_shape) != 2:
        raise SettingsError(
            f"the environment takes actions of shape {env.action_shape}, but {name} "
            "needs chunks [Ta, Da]; wrap it in chunk_actions(env, Ta), with Ta = 1 for "
            "single actions."
        )
    if num_chunks < 1:
        raise SettingsError(f"num_chunks={num_chunks} must be at least 1.")


def check_numbers(settings: Any, *, name: str, positive: tuple[str, ...]) -> None:
    """Raise SettingsError for an invalid one of the settings that both have.

    Args:
        settings: the section `algorithm.<name>`.
        positive: names of those that must be positive.
    """
    for key in (*positive, "beta", "max_weight"):
        if not settings[key] > 0:
            raise SettingsError(
                f"algorithm.{name}.{key}={settings[key]} must be positive."
            )
    if not 0 <= settings["discount"] <= 1:
        raise SettingsError(
            f"algorithm.{name}.discount={settings['discount']} must lie in [0, 1]."
        )
