"""Checks of whole losses: behaviour cloning, DPPO and Gaussian PPO."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.diffusion import denoising
from dppo_jax.diffusion.chain import Encoded, move_log_prob, sample_chain
from dppo_jax.learning import losses
from dppo_jax.learning.chain_losses import mean_log_prob, policy_loss
from dppo_jax.policies import diffusion_policy, gaussian_policy
from tests.reference_cases import (
    CHAIN,
    LOSS,
    NETWORK,
    Case,
    assert_close,
    assert_gradients_close,
    diffusion_mlp,
    gaussian_mlp,
    read_case,
    state_critic,
)


def check_bc_loss(path, tmp_path):
    case = read_case(path)
    _skip_other_networks(case)
    network = diffusion_mlp(case.config["net"])
    diffusion = denoising.make_diffusion(**diffusion_settings(case.config))
    (noise,) = case.group("draw/").values()

    def loss_of(params):
        return denoising.cloning_loss(
            denoising.diffusion_cloning(diffusion),
            network.apply,
            params,
            case.arrays["in/actions"],
            case.obs(),
            time=case.arrays["in/t"],
            noise=noise,
        ).mean()

    loss, gradients = jax.jit(jax.value_and_grad(loss_of))(case.params("net"))
    assert_close(loss, case.arrays["out/loss"], LOSS, "loss")
    assert_gradients_close(case, "grad/", gradients)


def check_dppo(path, tmp_path):
    case = read_case(path)
    _skip_other_networks(case)
    network = diffusion_mlp(case.config["net"])
    settings = case.config["model"]
    eta = settings.get("eta", case.config.get("eta", case.arrays.get("out/eta")))
    diffusion = denoising.make_diffusion(**diffusion_settings(settings, eta))
    check_chains(case, network, diffusion)
    policy = diffusion_policy(
        network,
        diffusion,
        chunk=network.chunk,
        action_dim=network.action_dim,
        num_tuned_steps=settings["ft_denoising_steps"],
    )
    horizon = min(case.config.get("reward_horizon", 4), network.chunk)
    row, step = case.arrays["in/batch_inds"], case.arrays["in/denoising_inds"]
    chain = case.arrays["out/chain"]
    old_log_prob = case.arrays["out/logprobs"][row, step]
    mean = functools.partial(mean_log_prob, horizon=horizon)

    def actor_loss(params, obs, advantage):
        return policy_loss(
            params,
            policy,
            obs,
            x=chain[row, step],
            next_x=chain[row, step + 1],
            step=jnp.asarray(step),
            old_log_prob=mean(old_log_prob),
            advantage=advantage,
            mean=mean,
            clip_top=settings["clip_ploss_coef"],
            clip_base=settings.get("clip_ploss_coef_base", 1e-3),
            clip_rate=settings.get("clip_ploss_coef_rate", 3.0),
            denoising_discount=settings["gamma_denoising"],
            normalize=settings.get("norm_adv", True),
            quantiles=(
                settings.get("clip_advantage_lower_quantile", 0),
                settings.get("clip_advantage_upper_quantile", 1),
            ),
        )

    check_losses(case, row, "actor_ft", actor_loss, settings.get("clip_vloss_coef"))


def check_chains(case: Case, network, diffusion):
    """Compare chains from the recorded draws, and log-probabilities of their moves."""
    settings = case.config["model"]
    num_tuned = settings["ft_denoising_steps"]
    behaviour = case.params("actor_ft_behaviour")
    base_of, behaviour_of = (
        functools.partial(Encoded, params)
        for params in (case.params("actor"), behaviour)
    )
    moves = denoising.diffusion_chain(diffusion, network.apply)

    def sample(draws, deterministic):
        return jax.jit(
            lambda draws: sample_chain(
                moves,
                base_of(case.obs()),
                lambda step: behaviour_of(case.obs()),
                draws,
                num_tuned=num_tuned,
                min_std=settings.get("min_sampling_denoising_std", 0.1),
                deterministic=deterministic,
            )
        )(np.stack(list(draws.values())))

    sampled = sample(case.group("draw/"), False)
    evaluated = sample(case.group("out/det_draw_"), True)
    chain, log_prob = case.arrays["out/chain"], case.arrays["out/logprobs"]
    assert_close(sampled.chain, chain, CHAIN, "chain")
    assert_close(sampled.chain[:, -1], case.arrays["out/action"], CHAIN, "action")
    deterministic = case.arrays["out/action_deterministic"]
    assert_close(evaluated.chain[:, -1], deterministic, CHAIN, "action_deterministic")
    scale = float32_scale(chain)
    assert_close(sampled.log_prob, log_prob, CHAIN, "log-prob. of sampling", scale)

    # The same from the recorded chain, with all moves in one batch as in an update.
    row, step = np.divmod(np.arange(chain.shape[0] * num_tuned), num_tuned)
    again = move_log_prob(
        moves,
        behaviour_of({name: value[row] for name, value in case.obs().items()}),
        chain[row, step],
        chain[row, step + 1],
        jnp.asarray(step + diffusion.explore.num_denoising_steps - num_tuned),
    )
    assert_close(
        again.reshape(log_prob.shape), log_prob, CHAIN, "log-prob. of moves", scale
    )


def float32_scale(chain: np.ndarray) -> float:
    """How much coarser float32 is in this chain than near 10.

    Without a bound on the clean action chains reach 1000 and more, and results from
    differences of their entries are less exact by this factor.
    """
    return max(1.0, np.abs(chain).max() / 10)


def check_ppo_gaussian(path, tmp_path):
    case = read_case(path)
    network = gaussian_mlp(case.config["net"])
    policy = gaussian_policy(network)
    action, params = case.arrays["in/actions"], case.params("net")
    row = np.arange(len(action))
    move = (np.zeros_like(action), action, case.obs(), jnp.zeros(len(row), jnp.int32))
    arrays = case.arrays
    log_prob = policy.log_prob(params, *move)
    assert_close(log_prob.mean((-2, -1)), arrays["out/logprobs"], NETWORK, "logprobs")
    entropy = policy.entropy(params, case.obs()).mean()
    assert_close(entropy, arrays["out/entropy"], LOSS, "entropy")
    std = network.apply(params, case.obs())[1].mean()
    assert_close(std, arrays["out/std"], NETWORK, "std")

    def actor_loss(params, obs, advantage):
        clip = case.config["clip_ploss_coef"]
        return policy_loss(
            params,
            policy,
            obs,
            x=move[0],
            next_x=move[1],
            step=move[3],
            old_log_prob=np.clip(arrays["in/oldlogprobs"], -5, 2),
            advantage=advantage,
            mean=functools.partial(mean_log_prob, bound_entries=False),
            clip_top=clip,
            clip_base=clip,
            clip_rate=1.0,
            denoising_discount=1.0,
            normalize=case.config.get("norm_adv", True),
        )

    check_losses(case, row, "net", actor_loss, case.config.get("clip_vloss_coef"))


def check_losses(case: Case, row, module: str, actor_loss, value_clip):
    """Compare policy and value loss over the samples `row`, and their gradients."""
    arrays = case.arrays
    obs = {name: value[row] for name, value in case.obs().items()}
    critic = state_critic(case.config["critic"])

    def loss_of(params):
        policy_term, info = actor_loss(
            params["actor"], obs, arrays["in/advantages"][row]
        )
        value_term = losses.value_loss(
            critic.apply(params["critic"], obs),
            arrays["in/returns"][row],
            arrays["in/oldvalues"][row],
            clip=value_clip,
        )
        value_coef = case.config.get("vf_coef", 0.5)
        return policy_term + value_coef * value_term, (policy_term, value_term, info)

    params = {"actor": case.params(module), "critic": case.params("critic")}
    gradients, (policy_term, value_term, info) = jax.jit(
        jax.grad(loss_of, has_aux=True)
    )(params)
    assert_close(value_term, arrays["out/v_loss"], LOSS, "v_loss")
    assert_gradients_close(case, "grad/critic/", gradients["critic"])
    if np.isnan(arrays["out/pg_loss"]):
        # The reference divides by zero where only one step is tuned.
        assert np.isfinite(policy_term)
        return
    scale = float32_scale(arrays.get("out/chain", np.zeros(1)))
    assert_close(policy_term, arrays["out/pg_loss"], LOSS, "pg_loss", scale)
    assert_gradients_close(case, f"grad/{module}/", gradients["actor"], scale)
    for ours, name in [
        (info.approx_kl, "out/approx_kl"),
        (info.clip_fraction, "out/clipfrac"),
        (info.ratio, "out/ratio"),
    ]:
        if name in arrays:
            assert_close(ours, arrays[name], LOSS, name, scale)


def diffusion_settings(settings: dict, eta=None) -> dict:
    """Convert the reference's constructor arguments to those of `make_diffusion`."""
    if settings.get("ddim_discretize", "uniform") != "uniform":
        pytest.skip(f"ddim_discretize={settings['ddim_discretize']}")
    if isinstance(eta, dict):
        eta = eta.get("base_eta", 0.5)
    return dict(
        num_denoising_steps=settings.get("denoising_steps", 100),
        ddim_steps=settings["ddim_steps"] if settings.get("use_ddim") else None,
        eta=1.0 if eta is None else float(eta),
        predict_noise=settings.get("predict_epsilon", True),
        x0_clip=settings.get("denoised_clip_value", 1.0),
        noise_clip=settings.get("eps_clip_value"),
        draw_clip=settings.get("randn_clip_value", 10),
        final_clip=settings.get("final_action_clip_value"),
        min_log_prob_std=settings.get("min_logprob_denoising_std", 0.1),
    )


def _skip_other_networks(case: Case) -> None:
    arch = case.config.get("arch", "diffusion_mlp")
    if arch != "diffusion_mlp" or "action_dim" not in case.config["net"]:
        pytest.skip(f"{case.name}: no network of the kind {arch}")
