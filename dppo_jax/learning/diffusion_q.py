"""What off-policy algorithms for diffusion policies share.

IDQL, DQL, QSM, DIPO and OGPO learn Q(s, a) of whole chunks from a replay buffer, and
train the denoising network of a cloned policy by that Q. In a round first the critics
learn, then the actor. An update is a function (state, batch, key) -> (state, metrics),
with batch leaves [N, ...] (in a sharded step, this device's part).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dppo_jax.errors import SettingsError
from dppo_jax.learning import optimizers, q_losses
from dppo_jax.learning.learner import Learner, row_keys
from dppo_jax.learning.optimizers import Trained, Trainer
from dppo_jax.networks import StateActionCritic, StateCritic
from dppo_jax.policies.chain import ChainPolicy, PolicyParams
from dppo_jax.training import parallel
from dppo_jax.types import Act, Array, Metrics, Obs, PyTree, Transition


class DiffusionQState(NamedTuple):
    """All trained values.

    actor: the denoising network.
    critic: Q(s, a), an ensemble. target: its target network.
    updates: rounds so far, int32.
    target_actor: the target network of the actor, or None.
    value: V(s), or None.
    """

    actor: Trained
    critic: Trained
    target: PyTree
    updates: Array
    target_actor: PyTree = None
    value: Trained | None = None


# (state, batch, key) -> (state, metrics).
Update = Callable[[DiffusionQState, Transition, Array], tuple[DiffusionQState, Metrics]]
# (state, batch, key) -> what the critics learn, [N].
TargetOf = Callable[[DiffusionQState, Transition, Array], Array]
# (network parameters, state, batch, key) -> scalar.
ActorLoss = Callable[[PyTree, DiffusionQState, Transition, Array], Array]


def whole(network: PyTree) -> PolicyParams:
    """Parameters of a policy whose every denoising step runs the same network."""
    return PolicyParams(base=network, tuned=network)


def sampled_target(
    policy: ChainPolicy,
    critic: StateActionCritic,
    *,
    discount: float,
    reward_scale: float,
    use_target_actor: bool,
    combine: Callable[[Array], Array] = lambda value: value.min(0),
) -> TargetOf:
    """Target reward + discount (1 - terminated) min Q'(s', a'), with a' ~ pi(s').

    Clipped double Q-learning (Fujimoto et al. 2018). The policy samples a' as its `act`
    explores.

    Args:
        discount: per chunk.
        reward_scale: factor of the rewards.
        use_target_actor: whether a' is sampled by `state.target_actor`.
        combine: values of all critics [num_critics, N] -> [N], in place of the minimum.
    """
    value_of: Callable[..., Any] = critic.apply

    def target_of(state: DiffusionQState, batch: Transition, key: Array) -> Array:
        network = state.target_actor if use_target_actor else state.actor.params
        keys = row_keys(key, len(batch.reward))
        action, _ = policy.act(whole(network), keys, batch.next_obs)
        return q_losses.td_target(
            reward_scale * batch.reward,
            combine(value_of(state.target, batch.next_obs, action)),
            batch.terminated,
            discount=discount,
        )

    return target_of


def critic_update(
    critic: StateActionCritic,
    trainer: Trainer,
    target_of: TargetOf,
    *,
    target_rate: float,
) -> Update:
    """Update all critics towards one target; then move their target network.

    Args:
        trainer: the optimizer of the critics.
        target_of: (state, batch, key) -> target [N].
        target_rate: see `optimizers.polyak`.
    """
    value_of: Callable[..., Any] = critic.apply

    def update(
        state: DiffusionQState, batch: Transition, key: Array
    ) -> tuple[DiffusionQState, Metrics]:
        target = target_of(state, batch, key)

        def loss_of(params: PyTree) -> tuple[Array, Metrics]:
            value = value_of(params, batch.obs, batch.action)
            loss = q_losses.critic_loss(value, target)
            return loss, {"critic_loss": loss, "value": value.mean()}

        gradient = jax.grad(loss_of, has_aux=True)
        grads, metrics = parallel.mean(gradient(state.critic.params))
        trained = trainer.descend(state.critic, grads)
        moved = optimizers.polyak(state.target, trained.params, target_rate)
        return state._replace(critic=trained, target=moved), metrics

    return update


def actor_update(
    trainer: Trainer, loss_of: ActorLoss, *, target_rate: float | None = None
) -> Update:
    """Update the actor, and its target network by `target_rate` unless that is None."""

    def update(
        state: DiffusionQState, batch: Transition, key: Array
    ) -> tuple[DiffusionQState, Metrics]:
        gradient = jax.value_and_grad(loss_of)
        loss, grads = parallel.mean(gradient(state.actor.params, state, batch, key))
        trained = trainer.descend(state.actor, grads)
        state = state._replace(actor=trained)
        if target_rate is not None:
            moved = optimizers.polyak(state.target_actor, trained.params, target_rate)
            state = state._replace(target_actor=moved)
        return state, {"actor_loss": loss}

    return update


def clone_actor(policy: ChainPolicy) -> ActorLoss:
    """The behaviour-cloning loss of the batch's actions."""

    def loss_of(
        params: PyTree, state: DiffusionQState, batch: Transition, key: Array
    ) -> Array:
        keys = row_keys(key, len(batch.reward))
        return policy.clone_loss(params, keys, batch.obs, batch.action).mean()

    return loss_of


def diffusion_q(
    policy: ChainPolicy,
    critic: StateActionCritic,
    *,
    actor_trainer: Trainer,
    critic_trainer: Trainer,
    critic_updates: Sequence[Update],
    update_actor: Update,
    action_shape: tuple[int, ...],
    critic_warmup: int = 0,
    has_target_actor: bool = False,
    value: tuple[StateCritic, Trainer] | None = None,
    act: Act | None = None,
    params: Callable[[DiffusionQState], PyTree] | None = None,
    improve: Callable[[DiffusionQState, Transition], PyTree] | None = None,
    learn_improved: bool = False,
    actor_first: bool = False,
) -> Learner:
    """Make a Learner; in a round the critics learn from each batch, then the actor.

    Args:
        critic_updates: run in this order on every batch.
        update_actor: runs on the last batch of a round.
        action_shape: [Ta, Da] that the environment executes.
        critic_warmup: rounds in which only the critics learn; until then the metrics of
            the actor are zero.
        has_target_actor: whether the actor has a target network.
        value: V(s) and its optimizer, for `DiffusionQState.value`.
        act, params: how the algorithm acts, and its parameters; None: by the actor.
        improve: (state, batch) -> better actions for the batch's observations, which
            are stored beside the executed ones and improved again when they are drawn.
            The actor clones them, and a round must be one batch. None: the actor learns
            from the executed ones.
        learn_improved: whether the critics learn from the stored improved actions too.
        actor_first: whether the actor learns before the critics of its round.

    Returns:
        A Learner; `init(key, obs, params=None)` starts from given parameters of the
        policy, or from new ones. It raises SettingsError if the policy's chunk differs
        from `action_shape`, or if its frozen network makes some of the steps.
    """

    def init(
        key: Array, obs: Obs, given: PolicyParams | None = None
    ) -> DiffusionQState:
        actor_key, critic_key, value_key = jax.random.split(key, 3)
        network = _network(policy, actor_key, obs, given)
        chunk = _check_chunk(policy, network, obs, action_shape)
        critic_params = critic.init(critic_key, obs, chunk)
        return DiffusionQState(
            actor=actor_trainer.init(network),
            critic=critic_trainer.init(critic_params),
            target=jax.tree.map(jnp.copy, critic_params),
            updates=jnp.int32(0),
            target_actor=jax.tree.map(jnp.copy, network) if has_target_actor else None,
            value=(
                None if value is None else value[1].init(value[0].init(value_key, obs))
            ),
        )

    def learn_actor(
        state: DiffusionQState, batch: Transition, key: Array
    ) -> tuple[DiffusionQState, Metrics, PyTree]:
        kept = batch.extras
        if improve is not None:
            kept = improve(state, batch._replace(action=batch.extras))
            batch = batch._replace(action=kept)
        state, metrics = update_actor(state, batch, key)
        return state, metrics, kept

    def learn_warm_actor(
        state: DiffusionQState, batch: Transition, key: Array
    ) -> tuple[DiffusionQState, Metrics, PyTree]:
        if critic_warmup == 0:
            return learn_actor(state, batch, key)
        shapes = jax.eval_shape(learn_actor, state, batch, key)[1]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.cond(
            state.updates >= critic_warmup,
            lambda: learn_actor(state, batch, key),
            lambda: (state, zeros, batch.extras),
        )

    def learn_critics(
        state: DiffusionQState, batches: Transition, keys: Array
    ) -> tuple[DiffusionQState, Metrics]:
        """Update the critics on each of n batches; keys are [n, number of updates]."""

        def learn(state: DiffusionQState, inputs: Any) -> tuple[Any, Metrics]:
            batch, keys = inputs
            if learn_improved:
                batch = batch._replace(action=batch.extras)
            metrics: Metrics = {}
            for one, key in zip(critic_updates, keys):
                state, more = one(state, batch, key)
                metrics |= more
            return state, metrics

        if len(keys) == 1:
            return learn(state, jax.tree.map(lambda x: x[0], (batches, keys)))
        state, metrics = jax.lax.scan(learn, state, (batches, keys))
        return state, jax.tree.map(jnp.mean, metrics)

    def update(state: DiffusionQState, batches: Transition, key: Array) -> tuple:
        num_batches, num_updates = len(batches.reward), len(critic_updates)
        actor_key, *keys = jax.random.split(key, 1 + num_batches * num_updates)
        critic_keys = jnp.stack(keys).reshape(num_batches, num_updates)
        batch = jax.tree.map(lambda x: x[-1], batches)
        if actor_first:
            state, more, kept = learn_warm_actor(state, batch, actor_key)
            state, metrics = learn_critics(state, batches, critic_keys)
        else:
            state, metrics = learn_critics(state, batches, critic_keys)
            state, more, kept = learn_warm_actor(state, batch, actor_key)
        state = state._replace(updates=state.updates + 1)
        if improve is None:
            return state, metrics | more
        return state, metrics | more, jax.tree.map(lambda x: x[None], kept)

    return Learner(
        init=jax.jit(init),
        update=update,
        params=params or (lambda state: whole(state.actor.params)),
        act=act or policy.act,
        finite=("critic_loss", "actor_loss"),
        keep=None if improve is None else (lambda transitions: transitions.action),
    )


def _network(
    policy: ChainPolicy, key: Array, obs: Obs, given: PolicyParams | None
) -> PyTree:
    """The network to train: of given parameters, or a new one."""
    if given is None:
        return policy.init(key, obs).tuned
    if given.num_active is not None:
        raise SettingsError(
            "the frozen network of this policy runs its first steps, because PPO "
            "lowered K' (tuned_steps_drop), but one network must run all of them here; "
            "start from the cloned policy."
        )
    # The host loop donates the buffers of the state.
    return jax.tree.map(jnp.copy, given.tuned)


def _check_chunk(
    policy: ChainPolicy, network: PyTree, obs: Obs, action_shape: tuple[int, ...]
) -> Array:
    """A chunk of zeros, [1, Ta, Da], if the policy's chunks have the right shape."""
    keys = jax.random.split(jax.random.key(0), 1)
    action, _ = jax.eval_shape(policy.act, whole(network), keys, obs)
    if action.shape[1:] != action_shape:
        raise SettingsError(
            f"the policy's chunk [Ta, Da] is {action.shape[1:]}, but the environment "
            f"executes {action_shape}; set model.chunk to the number of executed "
            "actions, because Q scores executed chunks."
        )
    return jnp.zeros(action.shape)
