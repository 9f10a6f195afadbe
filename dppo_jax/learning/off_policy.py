"""The iteration that off-policy algorithms share: collect, store, draw, update.

`off_policy_settings` has its settings.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dppo_jax import replay as buffers
from dppo_jax.errors import SettingsError
from dppo_jax.learning import off_policy_settings
from dppo_jax.learning.learner import Learner
from dppo_jax.learning.quarantine import cut_newest, sound_transitions
from dppo_jax.learning.rounds import make_rounds, with_extras
from dppo_jax.replay import Replay
from dppo_jax.rollout import env_keys, episode_means, restart, rollout
from dppo_jax.training import parallel
from dppo_jax.types import (
    OF_ENVIRONMENT,
    Algorithm,
    Array,
    Metrics,
    Obs,
    PyTree,
    VecEnv,
)


class OffPolicyState(NamedTuple):
    """The training state between two iterations; a checkpoint of it resumes exactly.

    replay: the collected transitions.
    offline: the given transitions; None if there are none.
    """

    learner: Any
    replay: Replay
    offline: Replay | None
    env: Any
    key: Array
    iteration: Array


def configured_off_policy(
    name: str, env: VecEnv, learner: Learner, config: Any, **others: Any
) -> Algorithm:
    """`off_policy` with the settings of a whole configuration.

    Args:
        name: of the algorithm, whose section has the settings `replay`.
        config: its sections `rollout` and `algorithm.<name>.replay` are read.
        others: further arguments of `off_policy`, which replace those of `replay`.
    """
    return off_policy(
        env,
        learner,
        num_chunks=config.rollout.num_chunks,
        reset_at_iteration=config.rollout.reset_at_iteration,
        **{**config.algorithm[name].replay, **others},
    )


def off_policy(
    env: VecEnv,
    learner: Learner,
    *,
    num_chunks: int,
    reset_at_iteration: bool = False,
    capacity: int,
    batch_size: int,
    random_steps: int = 0,
    min_fill: int = 0,
    updates_per_transition: float = 1.0,
    updates_per_round: int = 1,
    num_groups: int = 1,
    in_checkpoints: bool = True,
    offline: Replay | None = None,
    offline_share: float = 0.5,
) -> Algorithm:
    """Make an Algorithm that learns from a replay buffer.

    One `step` collects `num_chunks` chunks in every environment, stores them as
    transitions and makes `updates_per_transition` updates for each, every update on a
    new batch. All counts are transitions of all environments together.

    Args:
        env: its action is a chunk, [Ta, Da], with entries in [-1, 1].
        reset_at_iteration: start every iteration with new episodes.
        capacity: size of the buffer; new transitions overwrite the oldest.
        batch_size: transitions of one update.
        random_steps: transitions under uniform random actions, or `Learner.warm_up`,
            before the policy acts, rounded up to whole iterations.
        min_fill: transitions to collect before the first update; until then the metrics
            of the updates are zero. It counts again if a run resumes without its
            buffer.
        updates_per_transition: the update-to-data ratio.
        updates_per_round: batches that one call of `Learner.update` gets.
        offline: a buffer of given transitions to mix into every batch; None: none.
        offline_share: share of a batch that is drawn from `offline`.
        num_groups: groups of environments that each give a batch equally many
            transitions; must be a multiple of the number of devices.
        in_checkpoints: whether checkpoints hold the buffers. If not, a resumed run
            begins to fill its buffer anew.

    Returns:
        An Algorithm; the metrics of `Learner.update` are averaged over the rounds of an
        iteration whose losses are finite, and `skipped_updates` counts the others.

    Raises:
        SettingsError: invalid or contradictory settings, which the message names.
    """
    num_envs = env.num_envs
    per_iteration = num_envs * num_chunks
    num_rounds = off_policy_settings.num_rounds(
        per_iteration, updates_per_transition, updates_per_round
    )
    off_policy_settings.check_settings(
        env,
        num_chunks=num_chunks,
        reset_at_iteration=reset_at_iteration,
        capacity=capacity,
        batch_size=batch_size,
        min_fill=min_fill,
        num_groups=num_groups,
    )
    if learner.keep is not None and offline is not None:
        raise SettingsError(
            "this algorithm keeps values with its transitions, and given ones have none"
            "; leave the offline data out."
        )
    collect = _make_collect(env, learner, num_chunks, random_steps)
    learn = make_rounds(
        learner,
        num_rounds=num_rounds,
        updates_per_round=updates_per_round,
        batch_size=batch_size,
        num_groups=num_groups,
        offline_share=offline_share,
    )

    def init(key: Array, *args: Any) -> OffPolicyState:
        env_key, learner_key, key = jax.random.split(key, 3)
        keys = env_keys(env_key, num_envs)
        # Compile only parts of `init`: otherwise the offline data would become
        # constants of the program.
        env_state = jax.jit(env.reset)(keys)
        obs = jax.tree.map(lambda x: x[:1], env_state.obs)
        learner_state = learner.init(learner_key, obs, *args)
        iteration = jnp.zeros((), jnp.int32)
        _, transitions, _ = jax.eval_shape(
            collect, learner_state, env_state, keys, iteration
        )
        one = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), transitions
        )
        return OffPolicyState(
            learner=learner_state,
            replay=buffers.init(one, num_envs, capacity),
            # Copy, because the host loop donates the buffers of the state.
            offline=jax.tree.map(jnp.copy, offline),
            env=env_state,
            key=key,
            iteration=iteration,
        )

    def learn_when_filled(state: OffPolicyState, key: Array) -> tuple[Any, Metrics]:
        """As `learn`, or without updates while there are too few transitions."""
        inputs = (state.learner, state.replay, state.offline, key)
        if min_fill <= per_iteration:
            return learn(*inputs)
        metrics = jax.eval_shape(learn, *inputs)[1]
        # A buffer may start with demonstrations, or a run have resumed without it.
        most = capacity - capacity % num_envs
        stored = parallel.total(state.replay.size.sum())
        collected = (state.iteration + 1) * per_iteration
        return jax.lax.cond(
            (collected >= min_fill) & (stored >= min(min_fill, most)),
            lambda: learn(*inputs),
            lambda: (
                (state.learner, state.replay.items.extras),
                jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics),
            ),
        )

    def collect_and_store(state: OffPolicyState) -> tuple[OffPolicyState, Metrics]:
        """Run the first phase of an iteration."""
        key, reset_key, act_key = jax.random.split(state.key, 3)
        if reset_at_iteration:
            keys = env_keys(reset_key, num_envs)
            state = state._replace(env=restart(env, state.env, keys))
        env_state, transitions, metrics = collect(
            state.learner, state.env, env_keys(act_key, num_envs), state.iteration
        )
        done = jnp.maximum(transitions.terminated, transitions.truncated)
        episodes = episode_means(
            done, transitions.reward, transitions.next_obs, metrics
        )
        transitions = sound_transitions(transitions, metrics.get("diverged"))
        if reset_at_iteration:
            cut = transitions.truncated.at[-1].set(1 - transitions.terminated[-1])
            transitions = transitions._replace(truncated=cut)
        replay = cut_newest(state.replay, metrics.get("diverged"))
        replay = buffers.insert(replay, transitions)
        return state._replace(env=env_state, replay=replay, key=key), episodes

    def update(
        state: OffPolicyState, episodes: Metrics
    ) -> tuple[OffPolicyState, Metrics]:
        """Run the second phase."""
        key, learn_key = jax.random.split(state.key)
        (learner_state, extras), losses = learn_when_filled(state, learn_key)
        iteration = state.iteration + 1
        state = state._replace(learner=learner_state, key=key, iteration=iteration)
        state = state._replace(replay=with_extras(state.replay, extras))
        counts = {
            "env_steps": iteration * float(per_iteration * env.action_shape[0]),
            "replay_size": parallel.total(state.replay.size.sum()),
        }
        return state, episodes | losses | counts

    def step(state: OffPolicyState) -> tuple[OffPolicyState, Metrics]:
        return update(*collect_and_store(state))

    def split(state: OffPolicyState, num_devices: int) -> OffPolicyState:
        """Split the environments and both buffers; replicate the learner."""
        if num_groups % num_devices:
            raise SettingsError(
                f"replay.num_groups={num_groups} must be a multiple of the "
                f"{num_devices} devices, each of which draws from its own "
                f"environments; set it to {num_devices}, or use fewer devices."
            )
        (axis,) = parallel.SPLIT
        whole = jax.tree.map(lambda _: parallel.WHOLE, state)
        return whole._replace(
            env=jax.tree.map(lambda _: parallel.SPLIT, state.env),
            replay=buffers.partition(state.replay, axis),
            offline=(
                None
                if state.offline is None
                else buffers.partition(state.offline, axis)
            ),
        )

    return Algorithm(
        init=init,
        step=step,
        params=lambda state: learner.params(state.learner),
        act=learner.act,
        split=split,
        finite=(*OF_ENVIRONMENT, *learner.finite),
        phases=(collect_and_store, update),
        dispensable=("replay", "offline"),
        saves_dispensable=in_checkpoints,
    )


def _make_collect(
    env: VecEnv, learner: Learner, num_chunks: int, random_steps: int
) -> Callable[[Any, Any, Array, Array], tuple[Any, Any, Metrics]]:
    """Make (learner state, environment state, keys [B], iteration) -> a roll-out."""

    def uniform(params: PyTree, keys: Array, obs: Obs) -> tuple[Array, PyTree]:
        draw = jax.vmap(lambda key: jax.random.uniform(key, env.action_shape))(keys)
        return 2 * draw - 1, ()

    def as_evaluated(params: PyTree, keys: Array, obs: Obs) -> tuple[Array, PyTree]:
        return learner.act(params, keys, obs)[0], ()

    def executed(outputs: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        action, extras = outputs
        return action[:, : env.action_shape[0]], extras

    explore = learner.explore or as_evaluated
    warm_up = learner.warm_up or uniform

    def collect(
        learner_state: Any, env_state: Any, keys: Array, iteration: Array
    ) -> tuple[Any, Any, Metrics]:
        params = learner.params(learner_state)
        is_random = iteration * env.num_envs * num_chunks < random_steps

        def act(keys: Array, obs: Obs) -> tuple[Array, PyTree]:
            if random_steps == 0:
                return explore(params, keys, obs)
            return jax.lax.cond(
                is_random,
                lambda: executed(warm_up(params, keys, obs)),
                lambda: executed(explore(params, keys, obs)),
            )

        env_state, transitions, metrics = rollout(env, act, env_state, keys, num_chunks)
        if learner.keep is not None:
            transitions = transitions._replace(extras=learner.keep(transitions))
        return env_state, transitions, metrics

    return collect
