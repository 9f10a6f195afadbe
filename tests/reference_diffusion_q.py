"""Checks of the updates of off-policy algorithms for diffusion policies.

The updates are those of training, with the recorded draws in place of random ones and
an optimizer that only keeps the gradients.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.algorithms import dql, idql, qsm
from dppo_jax.diffusion import denoising
from dppo_jax.diffusion.chain import Encoded, sample_chain
from dppo_jax.learning import diffusion_q
from dppo_jax.learning.diffusion_q import DiffusionQState
from dppo_jax.learning.optimizers import Trained, Trainer
from dppo_jax.policies import ChainPolicy, diffusion_policy
from dppo_jax.policies.candidates import CandidateParams, candidate_policy
from dppo_jax.types import Transition
from tests.reference_cases import (
    CHAIN,
    LOSS,
    Case,
    assert_close,
    assert_gradients_close,
    diffusion_mlp,
    read_case,
    state_action_critic,
    state_critic,
)
from tests.reference_losses import diffusion_settings

# "Optimizer state" is the gradient, and parameters stay.
KEEP_GRADIENT = Trainer(
    init=lambda params: Trained(params, None),
    descend=lambda trained, grads: Trained(trained.params, grads),
)
KEY = jax.random.key(0)


def check_critic(path, tmp_path):
    """DQL and DIPO learn from the same target, whichever network samples it."""
    case = read_case(path)
    state = state_of(case)
    goal = diffusion_q.sampled_target(
        recorded_policy(case),
        critic_of(case),
        discount=case.config["gamma"],
        reward_scale=1.0,
        use_target_actor=case.name.startswith("dipo"),
    )
    update = diffusion_q.critic_update(
        critic_of(case), KEEP_GRADIENT, goal, target_rate=0.005
    )
    new, metrics = jax.jit(update)(state, batch_of(case), KEY)
    check_squared_errors(case, metrics, new, "out/loss", "grad/")


def check_squared_errors(case, metrics, new, name, prefix):
    """The reference has no factor of one half."""
    assert_close(2 * metrics["critic_loss"], case.arrays[name], LOSS, name)
    twice = jax.tree.map(lambda x: 2 * x, new.critic.optimizer)
    assert_gradients_close(case, prefix, twice)


def check_dql_actor(path, tmp_path):
    """With the quirk that the generated action is cloned, instead of a stored one."""
    case = read_case(path)
    loss = dql.actor_loss(
        recorded_policy(case),
        critic_of(case),
        eta=case.config["eta"],
        clone_generated=True,
        swap=case.name.endswith("q2"),
    )
    check_actor(case, loss)


def check_qsm_actor(path, tmp_path):
    case = read_case(path)
    loss = qsm.actor_loss(
        recorded_policy(case),
        critic_of(case),
        gradient_scale=case.config["q_grad_coeff"],
    )
    check_actor(case, loss)


def check_actor(case, loss):
    update = diffusion_q.actor_update(KEEP_GRADIENT, loss)
    new, metrics = jax.jit(update)(state_of(case), batch_of(case), KEY)
    assert_close(metrics["actor_loss"], case.arrays["out/loss"], LOSS, "loss")
    assert_gradients_close(case, "grad/", new.actor.optimizer)


def check_idql(path, tmp_path):
    case = read_case(path)
    critic, value = critic_of(case), state_critic(case.config["critic_v"])
    state, batch = state_of(case), batch_of(case)
    update = idql.value_update(
        critic, value, KEEP_GRADIENT, expectile=case.config["expectile"]
    )
    new, metrics = jax.jit(update)(state, batch, KEY)
    assert_close(metrics["value_loss"], case.arrays["out/loss_v"], LOSS, "loss_v")
    assert_gradients_close(case, "grad/v/", new.value.optimizer)

    goal = idql.value_target(value, discount=case.config["gamma"], reward_scale=1.0)
    update = diffusion_q.critic_update(critic, KEEP_GRADIENT, goal, target_rate=0.001)
    new, metrics = jax.jit(update)(state, batch, KEY)
    check_squared_errors(case, metrics, new, "out/loss_q", "grad/q/")

    num_samples = case.config["num_sample"]
    acting = candidate_policy(
        recorded_policy(case, num_samples=num_samples),
        critic,
        value,
        num_samples=num_samples,
        explore="expectile",
        evaluate="argmax",
        expectile=0.7,
        temperature=1.0,
    )
    params = CandidateParams(
        diffusion_q.whole(state.actor.params), state.target, state.value.params
    )
    keys = jax.random.split(KEY, len(batch.reward))
    action, _ = acting.act(params, keys, batch.obs, deterministic=True)
    assert_close(action, case.arrays["out/greedy_action"], CHAIN, "greedy_action")


def recorded_policy(case: Case, num_samples: int = 1) -> ChainPolicy:
    """The policy of a case; it samples and clones with the recorded draws.

    Args:
        num_samples: S; recorded rows are those of S repetitions of the batch, ours are
            S repetitions of every row.
    """
    network = diffusion_mlp(case.config["net"])
    diffusion = denoising.make_diffusion(**diffusion_settings(case.config["model"]))
    num_steps = diffusion.explore.num_denoising_steps
    recorded = list(case.group("draw/").values())
    chain_draws = recorded[: num_steps + 1]
    of_cloning = recorded[num_steps + 1 :] if len(recorded) > num_steps else recorded

    def act(params, keys, obs, *, deterministic=False):
        draws = np.stack(chain_draws)
        shape = (len(draws), num_samples, -1, *draws.shape[2:])
        draws = np.swapaxes(draws.reshape(shape), 1, 2).reshape(draws.shape)
        sampled = sample_chain(
            denoising.diffusion_chain(diffusion, network.apply),
            Encoded(params.base, obs),
            lambda step: Encoded(params.tuned, obs),
            jnp.asarray(draws),
            num_tuned=num_steps,
            min_std=case.config["model"]["min_sampling_denoising_std"],
            deterministic=deterministic,
        )
        return sampled.chain[:, -1], {}

    def clone_loss(params, keys, obs, action, **options):
        (time,) = (x for x in of_cloning if x.dtype == np.int64)
        (noise,) = (x for x in of_cloning if x.dtype != np.int64)
        return denoising.cloning_loss(
            denoising.diffusion_cloning(diffusion),
            network.apply,
            params,
            action,
            obs,
            time=jnp.asarray(time),
            noise=noise,
            **options,
        )

    policy = diffusion_policy(
        network,
        diffusion,
        chunk=network.chunk,
        action_dim=network.action_dim,
        num_tuned_steps=num_steps,
    )
    return policy._replace(act=act, clone_loss=clone_loss)


def critic_of(case: Case):
    config = case.config
    return state_action_critic(config.get("critic_q", config.get("critic")))


def state_of(case: Case) -> DiffusionQState:
    """The networks of a case; target networks that it lacks equal the others."""

    def params(*names):
        known = [x for x in names if case.group(f"param/{x}/")]
        return case.params(known[0])

    network = params("net")
    value = params("critic_v") if case.group("param/critic_v/") else None
    return DiffusionQState(
        actor=Trained(network, None),
        critic=Trained(params("critic_q", "critic"), None),
        target=params("target_q", "critic_target", "critic_q", "critic"),
        updates=jnp.int32(0),
        target_actor=network,
        value=None if value is None else Trained(value, None),
    )


def batch_of(case: Case) -> Transition:
    arrays = case.arrays
    rows = len(arrays["in/state"])
    zeros = np.zeros(rows, np.float32)
    return Transition(
        obs=case.obs(),
        action=arrays.get("in/actions", np.zeros((rows, 1, 1), np.float32)),
        reward=arrays.get("in/rewards", zeros),
        next_obs={"state": arrays.get("in/next_state", arrays["in/state"])},
        terminated=arrays.get("in/terminated", zeros),
        truncated=zeros,
        extras=(),
    )
