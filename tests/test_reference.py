"""Comparison with numbers from the reference implementation of DPPO.

Every `.npz` file in ../shared/golden, or in the folder that DPPO_JAX_GOLDEN names, is
a case. Sizes and settings come from the case itself, so a folder with other sizes and
settings runs as well. Cases of an unknown kind are skipped by name.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.demonstrations import gather, load_dppo_npz, save_dppo_npz, windows
from dppo_jax.diffusion import schedules as noise_schedules
from dppo_jax.interop import stack_critics
from dppo_jax.learning import optimizers, returns
from dppo_jax.normalize import unnormalize_action, unnormalize_obs
from tests.reference_cases import (
    LOSS,
    NETWORK,
    Case,
    assert_close,
    assert_gradients_close,
    diffusion_mlp,
    diffusion_unet,
    gaussian_mlp,
    gaussian_transformer,
    mixture,
    read_case,
    state_action_critic,
    state_critic,
    sum_of_squares,
    vit_encoder,
)
from tests.reference_demonstrations import (
    check_calql_critic,
    check_ibrl_actor,
    check_ibrl_critic,
)
from tests.reference_diffusion_q import check_critic as check_diffusion_critic
from tests.reference_diffusion_q import check_dql_actor, check_idql, check_qsm_actor
from tests.reference_losses import check_bc_loss, check_dppo, check_ppo_gaussian
from tests.reference_mixtures import check_ppo_gmm
from tests.reference_off_policy import (
    check_actor,
    check_critic,
    check_temperature,
)
from tests.reference_policies import check_finetuned, check_pretrained
from tests.reference_regression import check_value_regression, check_weighted_cloning

SHARED = Path(__file__).resolve().parents[2] / "shared"
FOLDER = Path(os.environ.get("DPPO_JAX_GOLDEN") or SHARED / "golden")
PATHS = sorted(FOLDER.glob("*.npz"))


@pytest.mark.parametrize("path", PATHS or [None], ids=lambda path: path and path.stem)
def test_agrees_with_reference(path, tmp_path):
    if path is None:
        pytest.skip(f"needs reference values (*.npz) in {FOLDER}")
    kind = next((kind for kind in KINDS if _belongs(path.stem, kind)), None)
    assert kind is not None, f"{path.stem}: no check for this kind of case"
    KINDS[kind](path, tmp_path)


def test_every_kind_of_check_has_a_case():
    """A lost case would not be missed otherwise."""
    if not PATHS:
        pytest.skip(f"needs reference values (*.npz) in {FOLDER}")
    if "DPPO_JAX_GOLDEN" in os.environ:
        pytest.skip("another folder may have some of the cases")
    cases = [path.stem for path in PATHS]
    assert [x for x in KINDS if not any(_belongs(case, x) for case in cases)] == []


def check_schedule(path, tmp_path):
    case = read_case(path)
    num_denoising_steps = case.config["denoising_steps"]
    ddpm = noise_schedules.ddpm_schedule(num_denoising_steps)
    betas = noise_schedules.cosine_betas(num_denoising_steps)
    alpha_bars = noise_schedules.alpha_bars_of(betas)
    ours = {
        "betas": betas,
        "alphas": 1 - betas,
        "alphas_cumprod": alpha_bars,
        "alphas_cumprod_prev": np.concatenate([[1], alpha_bars[:-1]]),
        "sqrt_alphas_cumprod": ddpm.signal[::-1],
        "sqrt_one_minus_alphas_cumprod": ddpm.noise[::-1],
        "sqrt_recip_alphas_cumprod": ddpm.x0_from_x[::-1],
        "sqrt_recipm1_alphas_cumprod": -ddpm.x0_from_out[::-1],
        "ddpm_var": ddpm.std[::-1] ** 2,
        "ddpm_logvar_clipped": 2 * jnp.log(ddpm.std[::-1]),
        "ddpm_mu_coef1": ddpm.mean_from_x0[::-1],
        "ddpm_mu_coef2": ddpm.mean_from_x[::-1],
    }
    if case.config.get("ddim_steps") is not None:
        ddim = noise_schedules.ddim_schedule(
            case.config["ddim_steps"], num_training_steps=num_denoising_steps, eta=0.0
        )
        ours |= {
            "ddim_t": ddim.time,
            "ddim_alphas": ddim.signal**2,
            "ddim_alphas_sqrt": ddim.signal,
            "ddim_alphas_prev": 1 - ddim.mean_from_noise**2,
            "ddim_sqrt_one_minus_alphas": ddim.noise,
            "ddim_sigmas": ddim.std,
        }
    for name, expected in case.group("out/").items():
        assert_close(ours[name], expected, NETWORK, name)


def check_diffusion_mlp(path, tmp_path):
    case = read_case(path)
    inputs = case.arrays["in/x"], case.arrays["in/t"], case.obs()
    check_network(case, diffusion_mlp(case.config), *inputs)


def check_unet(path, tmp_path):
    case = read_case(path)
    x = case.arrays["in/x"]
    network = diffusion_unet(case.config, chunk=x.shape[1])
    check_network(case, network, x, case.arrays["in/t"], case.obs())


def check_gaussian_mlp(path, tmp_path):
    case = read_case(path)
    check_network(case, gaussian_mlp(case.config), case.obs())


def check_gaussian_transformer(path, tmp_path):
    case = read_case(path)
    check_network(case, gaussian_transformer(case.config), case.obs())


def check_mixture(path, tmp_path):
    case = read_case(path)
    check_network(case, mixture(case.config), case.obs())


def check_critic_obs(path, tmp_path):
    case = read_case(path)
    check_network(case, state_critic(case.config), case.obs())


def check_critic_obs_act(path, tmp_path):
    case = read_case(path)
    network, params = state_action_critic(case.config), case.params("net")
    if network.num_critics == 1:
        params = stack_critics([params])
    inputs = case.obs(), case.arrays["in/action"]
    check_network(case, network, *inputs, params=params)


def check_vision_mlp(path, tmp_path):
    case = read_case(path)
    network = diffusion_mlp(case.config).clone(encoder=vit_encoder(case))
    check_network(case, network, case.arrays["in/x"], case.arrays["in/t"], case.obs())


def check_vit_critic(path, tmp_path):
    case = read_case(path)
    network = state_critic(case.config).clone(encoder=vit_encoder(case, features=128))
    check_network(case, network, case.obs())


def check_network(case: Case, network, *inputs, params=None):
    params = case.params("net") if params is None else params
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
    outputs = jax.jit(network.apply)(params, *inputs)
    if not isinstance(outputs, tuple):
        critics = case.group("out/").keys() >= {"y1"}
        outputs = tuple(outputs) if critics else (outputs,)
    for (name, expected), output in zip(
        case.group("out/").items(), outputs, strict=True
    ):
        assert_close(output.reshape(expected.shape), expected, NETWORK, name)
    gradients = jax.jit(jax.grad(sum_of_squares(network, *inputs)))(params)
    assert_gradients_close(case, "grad/", gradients)


def check_gae(path, tmp_path):
    case = read_case(path)
    arrays = {name: value.astype(np.float32) for name, value in case.arrays.items()}
    value, terminated = arrays["in/values"], arrays["in/terminated"]
    advantage, target = returns.gae(
        arrays["in/rewards"] * case.config.get("reward_scale_const", 1.0),
        value,
        np.concatenate([value[1:], arrays["in/next_values"][None]]),
        terminated,
        np.zeros_like(terminated),
        discount=case.config["gamma"],
        gae_lambda=case.config["gae_lambda"],
    )
    assert_close(advantage, arrays["out/advantages"], LOSS, "advantages")
    assert_close(target, arrays["out/returns"], LOSS, "returns")


def check_reward_scaling(path, tmp_path):
    case = read_case(path)
    if case.config.get("per_env", False):
        pytest.skip(f"{case.name}: rewards are scaled by one number for all")
    rewards, firsts = case.group("in/rewards"), case.group("in/first")
    scale = returns.init_reward_scale(case.config["num_envs"])
    for i in sorted(rewards, key=int):
        scale, scaled = returns.scale_rewards(
            scale,
            *(jnp.asarray(x.T, jnp.float32) for x in (rewards[i], firsts[i])),
            discount=case.config.get("gamma", 0.99),
            bound=case.config.get("cliprew", 10.0),
            epsilon=case.config.get("epsilon", 1e-8),
        )
        assert_close(scaled.T, case.arrays[f"out/scaled{i}"], LOSS, f"scaled{i}")
        for ours, name in [
            (scale.variance, f"out/var{i}"),
            (scale.mean, f"out/mean{i}"),
            (scale[2], f"out/count{i}"),
        ]:
            if name in case.arrays:
                assert_close(ours, case.arrays[name], LOSS, name)


def check_lr_schedule(path, tmp_path):
    case = read_case(path)
    for name in ("cycle_mult", "gamma"):
        if case.config.get(name, 1.0) != 1.0:
            pytest.skip(f"{case.name}: all cycles are alike, {name} is not supported")
    expected = case.arrays["out/lr"]
    ours = optimizers.cosine_restarts(
        jnp.arange(len(expected)),
        peak=case.config.get("max_lr", 0.1),
        floor=case.config.get("min_lr", 0.001),
        cycle_steps=case.config["first_cycle_steps"],
        warmup_steps=case.config.get("warmup_steps", 0),
    )
    np.testing.assert_allclose(ours, expected, rtol=LOSS, atol=1e-9)


def check_dataset(path, tmp_path):
    """A data set survives our own writer; cases `NAME_check` compare windows."""
    data = path.with_name(path.name.replace("_check.npz", ".npz"))
    if not data.is_file():
        pytest.skip(f"{path.stem}: needs {data.name}")
    if path == data:
        episodes = load_dppo_npz(path)
        normalizer = save_dppo_npz(tmp_path, episodes._replace(normalizer=None))
        again = load_dppo_npz(tmp_path)
        for ours, theirs in [
            (unnormalize_action(normalizer, again.actions), episodes.actions),
            (
                unnormalize_obs(normalizer, again.observations["state"]),
                episodes.observations["state"],
            ),
        ]:
            assert_close(ours, theirs, LOSS, path.stem)
        np.testing.assert_array_equal(again.episode_lengths, episodes.episode_lengths)
        return
    case = read_case(path)
    use_images = "out/rgb" in case.arrays
    episodes = load_dppo_npz(
        data, case.config.get("max_n_episodes", None), images=use_images
    )
    samples = windows(
        episodes,
        chunk=case.config.get("horizon_steps", 64),
        history=case.config.get("cond_steps", 1),
        image_history=case.config.get("img_cond_steps", 1),
    )
    obs, actions = gather(samples, jnp.arange(samples.size))
    np.testing.assert_array_equal(actions, case.arrays["out/actions"])
    np.testing.assert_array_equal(obs["state"], case.arrays["out/state"])
    np.testing.assert_array_equal(
        samples.action_rows[:, 0], case.arrays["out/indices"][:, 0]
    )
    if use_images:
        channels_first = np.moveaxis(obs["rgb"], -1, 2)
        np.testing.assert_array_equal(channels_first, case.arrays["out/rgb"])


# A case belongs to the first kind that its name equals or starts with.
KINDS = {
    "schedule": check_schedule,
    "net_diffusion_mlp": check_diffusion_mlp,
    "net_unet1d": check_unet,
    "net_vision_diffusion_mlp": check_vision_mlp,
    "net_vit_critic": check_vit_critic,
    "net_critic_obs_act": check_critic_obs_act,
    "net_critic_obs": check_critic_obs,
    "net_gaussian_mlp": check_gaussian_mlp,
    "net_gaussian_transformer": check_gaussian_transformer,
    "net_gmm": check_mixture,
    "bc_loss": check_bc_loss,
    "dppo": check_dppo,
    "ppo_gaussian": check_ppo_gaussian,
    "ppo_gmm": check_ppo_gmm,
    "calql_critic": check_calql_critic,
    "ibrl_actor": check_ibrl_actor,
    "ibrl_critic": check_ibrl_critic,
    "rlpd_actor": check_actor,
    "rlpd_critic": check_critic,
    "sac_actor": check_actor,
    "sac_critic": check_critic,
    "sac_temperature": check_temperature,
    "dql_critic": check_diffusion_critic,
    "dql_actor": check_dql_actor,
    "idql": check_idql,
    "qsm_actor": check_qsm_actor,
    "dipo_critic": check_diffusion_critic,
    "rwr": check_weighted_cloning,
    "awr_critic": check_value_regression,
    "gae": check_gae,
    "reward_scaling": check_reward_scaling,
    "lr_schedule": check_lr_schedule,
    "dataset_official_format": check_dataset,
    "pretrain_state": check_pretrained,
    "finetune_state": check_finetuned,
}


def _belongs(name: str, kind: str) -> bool:
    return name == kind or name.startswith(f"{kind}_")
