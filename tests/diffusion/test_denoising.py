import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.diffusion.chain import (
    Chain,
    Encoded,
    gaussian_log_prob,
    move_log_prob,
    sample_chain,
)
from dppo_jax.diffusion.denoising import (
    Cloning,
    cloning_loss,
    denoise_mean,
    diffusion_chain,
    diffusion_cloning,
    make_diffusion,
)
from dppo_jax.diffusion.schedules import (
    alpha_bars_of,
    cosine_betas,
    ddim_schedule,
    ddpm_schedule,
    linear_betas,
)

K = 5
B, TA, DA = 3, 2, 1
OBS = jnp.array([[[0.1]], [[-0.2]], [[0.3]]])  # the encoded observation
ACTION = jnp.array([[[0.6], [-0.3]], [[0.0], [0.9]], [[-1.0], [0.2]]])
DRAWS = jax.random.normal(jax.random.key(0), (K + 1, B, TA, DA))


def linear(params, x, time, obs):
    """A network that a reader can evaluate by hand."""
    return params * x + 0.1 * time[:, None, None] + obs


def oracle(schedule, *, predict_noise=True):
    """The perfect network: it predicts that the clean action is ACTION."""

    def apply(params, x, time, obs):
        # `time` names a step; the last table entry is time 0.
        step = jnp.argmin(jnp.abs(schedule.time[None] - time[:, None]), axis=1)
        signal = schedule.signal[step][:, None, None]
        noise = schedule.noise[step][:, None, None]
        return (x - signal * ACTION) / noise if predict_noise else ACTION

    return apply


def chain_of(diffusion, apply=linear, *, base=0.5, tuned=0.5, draws=DRAWS, **settings):
    settings = dict(num_tuned=K, min_std=0.0, deterministic=False) | settings
    return sample_chain(
        diffusion_chain(diffusion, apply),
        Encoded(base, OBS),
        lambda step: Encoded(tuned, OBS),
        draws,
        **settings,
    )


def log_prob_of(diffusion, x, next_x, step):
    """Log-probability of moves by `linear` with the parameter 0.5."""
    chain = diffusion_chain(diffusion, linear)
    return move_log_prob(chain, Encoded(0.5, OBS), x, next_x, step)


def test_ddpm_moves_follow_the_posterior_of_the_forward_process():
    """The posterior is the product of two Gaussians of x_{k-1}: N(signal x0, .), and
    the likelihood of x_k = sqrt(1 - beta) x_{k-1} + sqrt(beta) noise."""
    betas = cosine_betas(K).astype(np.float64)
    alpha_bars = np.cumprod(1 - betas)
    schedule = ddpm_schedule(K)
    for k in range(1, K):
        prior = 1 / (1 - alpha_bars[k - 1])
        likelihood = (1 - betas[k]) / betas[k]
        variance = 1 / (prior + likelihood)
        entry = K - 1 - k  # noisiest first
        expected = {
            "mean_from_x0": variance * prior * np.sqrt(alpha_bars[k - 1]),
            "mean_from_x": variance * likelihood / np.sqrt(1 - betas[k]),
            "std": np.sqrt(variance),
        }
        for name, value in expected.items():
            table = getattr(schedule, name)
            np.testing.assert_allclose(table[entry], value, rtol=1e-4, err_msg=name)
    # The last move ends at x0.
    last = jax.tree.map(lambda table: float(table[-1]), schedule)
    assert (last.mean_from_x0, last.mean_from_x) == pytest.approx((1, 0), abs=1e-6)
    assert last.std < 1e-9


@pytest.mark.parametrize(
    "schedule",
    [ddpm_schedule(K), ddim_schedule(3, num_training_steps=10, eta=1.0)],
    ids=["ddpm", "ddim"],
)
def test_the_predicted_noise_undoes_the_forward_process(schedule):
    np.testing.assert_allclose(schedule.signal**2 + schedule.noise**2, 1, rtol=1e-5)
    x0, noise = 0.7, -1.3
    x = schedule.signal * x0 + schedule.noise * noise
    recovered = schedule.x0_from_x * x + schedule.x0_from_out * noise
    np.testing.assert_allclose(recovered, x0, rtol=2e-3)
    assert (np.diff(schedule.noise) < 0).all() and (np.diff(schedule.time) < 0).all()


def test_ddim_with_eta_1_and_every_step_is_ddpm():
    ddpm = ddpm_schedule(K)
    ddim = ddim_schedule(K, num_training_steps=K, eta=1.0)
    for name in ("time", "signal", "noise", "mean_from_x0", "mean_from_x", "std"):
        np.testing.assert_allclose(
            getattr(ddim, name),
            getattr(ddpm, name),
            rtol=1e-3,
            atol=1e-5,
            err_msg=name,
        )


def test_ddim_with_eta_0_moves_without_noise_between_noise_levels():
    """x = signal x0 + noise eps keeps this form with the same x0 and eps."""
    s = ddim_schedule(4, num_training_steps=20, eta=0.0)
    assert (s.std == 0).all()
    x0, eps = 0.4, 1.1
    x = s.signal * x0 + s.noise * eps
    following = s.mean_from_x0 * x0 + s.mean_from_x * x
    np.testing.assert_allclose(following[:-1], x[1:], rtol=1e-5)
    np.testing.assert_allclose(following[-1], x0, rtol=1e-5)


def test_ddim_skips_steps_evenly_and_tells_the_network_their_times():
    schedule = ddim_schedule(3, num_training_steps=10, eta=1.0)
    np.testing.assert_array_equal(schedule.time, [6, 3, 0])
    alpha_bars = alpha_bars_of(cosine_betas(10))
    np.testing.assert_allclose(schedule.signal**2, alpha_bars[[6, 3, 0]], rtol=1e-5)


@pytest.mark.parametrize(
    "num, of, times", [(1, 20, [19]), (3, 10, [9, 6, 2]), (4, 8, [7, 5, 3, 1])]
)
def test_ddim_with_trailing_steps_begins_at_the_noisiest_one(num, of, times):
    """Rounded multiples of of / num, less one."""
    schedule = ddim_schedule(num, num_training_steps=of, eta=0.0, spacing="trailing")
    np.testing.assert_array_equal(schedule.time, times)
    ends = schedule.mean_from_x0[-1], schedule.mean_from_x[-1]
    assert ends == pytest.approx((1, 0), abs=1e-5)
    with pytest.raises(ValueError, match="ddim_spacing='even' is unknown; use one of"):
        ddim_schedule(1, num_training_steps=2, eta=0.0, spacing="even")


def test_deterministic_ddpm_keeps_the_posterior_noise_but_for_the_last_move():
    explore, evaluate = ddpm_schedule(K), ddpm_schedule(K, deterministic=True)
    np.testing.assert_array_equal(
        evaluate.std[:-1], jnp.maximum(explore.std, 1e-3)[:-1]
    )
    assert evaluate.std[-1] == 0


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"predict_noise": False},
        {"ddim_steps": 3},
        {"ddim_steps": 3, "predict_noise": False},
        {"beta_schedule": "linear", "beta_end": 0.5},
        {"ddim_steps": 3, "beta_schedule": "linear", "beta_end": 0.5},
    ],
    ids=["ddpm", "x0", "ddim", "ddim of x0", "linear ddpm", "linear ddim"],
)
def test_a_chain_with_a_perfect_network_ends_at_the_action(settings, deterministic):
    diffusion = make_diffusion(num_denoising_steps=K, **settings)
    num_denoising_steps = diffusion.explore.num_denoising_steps
    apply = oracle(diffusion.explore, predict_noise=settings.get("predict_noise", True))
    chain, _ = chain_of(
        diffusion,
        apply,
        draws=DRAWS[: num_denoising_steps + 1],
        num_tuned=num_denoising_steps,
        deterministic=deterministic,
    )
    assert chain.shape == (B, num_denoising_steps + 1, TA, DA)
    np.testing.assert_array_equal(chain[:, 0], DRAWS[0])
    np.testing.assert_allclose(chain[:, -1], ACTION, atol=1e-4)


def test_the_floor_of_the_std_spreads_the_last_action():
    """Without a floor the last move of DDPM has no noise; with one it explores."""
    diffusion = make_diffusion(num_denoising_steps=K)
    chain, _ = chain_of(diffusion, oracle(diffusion.explore), min_std=0.2)
    np.testing.assert_allclose(chain[:, -1] - ACTION, 0.2 * DRAWS[-1], atol=1e-4)
    calm, _ = chain_of(
        diffusion, oracle(diffusion.explore), min_std=0.2, deterministic=True
    )
    np.testing.assert_allclose(calm[:, -1], ACTION, atol=1e-4)


@pytest.mark.parametrize("num_tuned", [1, 3, K])
def test_log_probs_of_a_sample_are_those_of_its_moves(num_tuned):
    diffusion = make_diffusion(num_denoising_steps=K)
    chain, log_prob = chain_of(diffusion, num_tuned=num_tuned, min_std=0.1)
    assert log_prob.shape == (B, num_tuned, TA, DA)
    for k in range(num_tuned):
        step = jnp.full(B, K - num_tuned + k)
        again = log_prob_of(diffusion, chain[:, k], chain[:, k + 1], step)
        np.testing.assert_allclose(log_prob[:, k], again, rtol=1e-4, atol=1e-4)


def test_steps_of_a_batch_may_differ():
    """With a step [B] every row gets the same as with its scalar step alone."""
    diffusion = make_diffusion(num_denoising_steps=K)
    x, next_x, steps = DRAWS[0], DRAWS[1], jnp.array([0, 2, 4])
    mixed = log_prob_of(diffusion, x, next_x, steps)
    for row, step in enumerate(steps):
        alone = log_prob_of(diffusion, x, next_x, jnp.full(B, step))
        np.testing.assert_allclose(mixed[row], alone[row], rtol=1e-5)


def test_draws_are_clipped_but_the_density_is_not():
    diffusion = make_diffusion(
        num_denoising_steps=1, draw_clip=2.0, min_log_prob_std=0.1
    )
    draws = jnp.concatenate([jnp.zeros((1, B, TA, DA)), jnp.full((1, B, TA, DA), 9.0)])
    chain, log_prob = chain_of(
        diffusion,
        lambda params, x, time, obs: x,
        draws=draws,
        num_tuned=1,
        min_std=0.5,
    )
    # The network predicts no noise at x = 0, so the mean is 0 and the move 2 sigma.
    np.testing.assert_allclose(chain[:, 1], 0.5 * 2.0, rtol=1e-5)
    expected = -0.5 * (1.0 / 0.1) ** 2 - np.log(0.1 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5)


def test_only_the_action_that_leaves_the_chain_is_clipped():
    diffusion = make_diffusion(num_denoising_steps=K, final_clip=0.05)
    free, _ = chain_of(make_diffusion(num_denoising_steps=K))
    chain, _ = chain_of(diffusion)
    np.testing.assert_array_equal(chain[:, :-1], free[:, :-1])
    assert abs(free[:, -1]).max() > 0.05
    np.testing.assert_allclose(chain[:, -1], jnp.clip(free[:, -1], -0.05, 0.05))


@pytest.mark.parametrize("num_tuned", [1, 3])
def test_the_number_of_tuned_steps_only_shortens_the_recorded_chain(num_tuned):
    diffusion = make_diffusion(num_denoising_steps=K)
    whole, whole_log_prob = chain_of(diffusion, num_tuned=K)
    part, log_prob = chain_of(diffusion, num_tuned=num_tuned)
    np.testing.assert_allclose(part, whole[:, -num_tuned - 1 :], atol=1e-5)
    np.testing.assert_allclose(log_prob, whole_log_prob[:, -num_tuned:], rtol=1e-4)


def test_the_frozen_network_runs_only_the_early_steps():
    diffusion = make_diffusion(num_denoising_steps=K, x0_clip=None)
    first = chain_of(diffusion, num_tuned=2).chain
    other_tuned = chain_of(diffusion, num_tuned=2, tuned=0.1).chain
    other_base = chain_of(diffusion, num_tuned=2, base=0.1).chain
    np.testing.assert_array_equal(first[:, 0], other_tuned[:, 0])
    assert (first[:, 1:] != other_tuned[:, 1:]).all()
    assert (first[:, 0] != other_base[:, 0]).all()


def test_with_every_step_tuned_the_frozen_network_is_never_evaluated():
    diffusion = make_diffusion(num_denoising_steps=K)
    chain, _ = chain_of(diffusion, base=jnp.nan)
    np.testing.assert_array_equal(chain, chain_of(diffusion).chain)
    assert jnp.isfinite(chain).all()


def test_the_predicted_action_is_clipped_before_it_becomes_a_mean():
    diffusion = make_diffusion(num_denoising_steps=K, x0_clip=0.5)
    x, out = jnp.full((1, 1, 1), 0.2), jnp.full((1, 1, 1), -1000.0)
    for step in range(K):
        s = jax.tree.map(lambda table: float(table[step]), diffusion.explore)
        mean = denoise_mean(diffusion, diffusion.explore, x, out, step)
        expected = s.mean_from_x0 * 0.5 + s.mean_from_x * 0.2
        np.testing.assert_allclose(mean, expected, rtol=1e-5)


def test_the_noise_in_a_ddim_mean_is_clipped():
    """The move uses x0 as it is, and the noise clipped to its bound."""
    settings = dict(num_denoising_steps=10, ddim_steps=K, x0_clip=None)
    free, bounded = (make_diffusion(**settings, noise_clip=c) for c in (None, 0.5))
    s = free.deterministic
    x0, step = 0.3, 1
    for noise in (0.4, 2.0):
        x = jnp.full((1, 1, 1), s.signal[step] * x0 + s.noise[step] * noise)
        out = jnp.full((1, 1, 1), noise)
        kept = s.signal[step + 1] * x0 + s.noise[step + 1] * noise
        cut = s.signal[step + 1] * x0 + s.noise[step + 1] * min(noise, 0.5)
        np.testing.assert_allclose(denoise_mean(free, s, x, out, step), kept, 1e-4)
        np.testing.assert_allclose(denoise_mean(bounded, s, x, out, step), cut, 1e-4)


@pytest.mark.parametrize("predict_noise", [True, False])
def test_the_noise_in_a_ddim_mean_may_be_that_of_the_output(predict_noise):
    """x0 = 1.6 is clipped to 1, and the noise stays 0.7, as in diffusers."""
    settings = dict(num_denoising_steps=10, ddim_steps=K, predict_noise=predict_noise)
    diffusion = make_diffusion(**settings, rederive_noise=False)
    s, step = diffusion.deterministic, 1
    x0, noise = 1.6, 0.7
    x = jnp.full((1, 1, 1), s.signal[step] * x0 + s.noise[step] * noise)
    out = jnp.full((1, 1, 1), noise if predict_noise else x0)
    expected = s.signal[step + 1] * 1.0 + s.noise[step + 1] * noise
    found = denoise_mean(diffusion, s, x, out, step)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    bounded = diffusion._replace(noise_clip=0.5)
    expected = s.signal[step + 1] * 1.0 + s.noise[step + 1] * 0.5
    found = denoise_mean(bounded, s, x, out, step)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    again = denoise_mean(make_diffusion(**settings), s, x, out, step)
    implied = (x - s.signal[step]) / s.noise[step]
    expected = s.signal[step + 1] + s.noise[step + 1] * implied
    np.testing.assert_allclose(again, expected, rtol=1e-4)


def test_linear_rates_are_evenly_spaced_from_the_cleanest():
    rates = linear_betas(3, beta_start=0.1, beta_end=0.3)
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3], rtol=1e-6)
    schedule = ddpm_schedule(3, betas=rates)
    powers = [0.9 * 0.8 * 0.7, 0.9 * 0.8, 0.9]  # the noisiest first
    np.testing.assert_allclose(schedule.signal**2, powers, rtol=1e-5)


@pytest.mark.parametrize("predict_noise", [True, False])
def test_the_cloning_loss_is_zero_for_a_perfect_network(predict_noise):
    diffusion = make_diffusion(num_denoising_steps=K, predict_noise=predict_noise)
    apply = oracle(diffusion.training, predict_noise=predict_noise)
    time, noise = jnp.array([0, 2, 4]), DRAWS[0]

    def loss_of(network):
        cloning = diffusion_cloning(diffusion)
        return cloning_loss(cloning, network, None, ACTION, OBS, time, noise)

    assert (loss_of(apply) < 1e-4).all()
    target = noise if predict_noise else ACTION
    np.testing.assert_allclose(
        loss_of(lambda params, x, time, obs: 0 * x),
        (target**2).mean((-2, -1)),
        rtol=1e-6,
    )


def test_the_density_is_that_of_a_gaussian():
    value = gaussian_log_prob(jnp.array(1.0), jnp.array(0.0), jnp.array(2.0))
    expected = np.log(np.exp(-1 / 8) / (2 * np.sqrt(2 * np.pi)))
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_jit_changes_nothing():
    diffusion = make_diffusion(num_denoising_steps=K)
    plain = chain_of(diffusion, num_tuned=2, min_std=0.1)
    jitted = jax.jit(
        lambda draws: chain_of(diffusion, num_tuned=2, min_std=0.1, draws=draws)
    )(DRAWS)
    for a, b in zip(plain, jitted):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(num_denoising_steps=0), "num_denoising_steps=0"),
        (dict(num_denoising_steps=5, ddim_steps=6), "ddim_steps=6 .* 5"),
        (dict(num_denoising_steps=5, ddim_steps=0), "ddim_steps=0"),
        (dict(num_denoising_steps=5, beta_schedule="sine"), "beta_schedule='sine'"),
        (
            dict(num_denoising_steps=5, beta_schedule="linear", beta_end=1.0),
            "beta_end=1.0 must be rates",
        ),
        (
            dict(num_denoising_steps=5, beta_schedule="linear", beta_start=0.0),
            "beta_start=0.0",
        ),
        (
            dict(num_denoising_steps=0, beta_schedule="linear"),
            "num_denoising_steps=0",
        ),
        (dict(num_denoising_steps=5, x0_clip=0.0), "x0_clip=0.0"),
        (dict(num_denoising_steps=5, noise_clip=-1.0), "noise_clip=-1.0"),
        (dict(num_denoising_steps=5, draw_clip=0.0), "draw_clip=0.0"),
        (dict(num_denoising_steps=5, final_clip=0.0), "final_clip=0.0"),
        (dict(num_denoising_steps=5, min_log_prob_std=0.0), "min_log_prob_std=0.0"),
        (dict(num_denoising_steps=5, eta=-0.1), "eta=-0.1"),
        (dict(num_denoising_steps=5, x0_clip=0.0), "None for no bound"),
        (dict(num_denoising_steps=5, draw_clip=0.0), "must be positive.$"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        make_diffusion(**settings)


def test_the_policy_explores_with_eta_and_is_deterministic_without():
    for ddim_steps, eta in ((None, 1.0), (3, 0.0), (3, 0.5)):
        found = make_diffusion(num_denoising_steps=K, ddim_steps=ddim_steps, eta=eta)
        schedules = (
            [ddpm_schedule(K, deterministic=deterministic) for deterministic in (0, 1)]
            if ddim_steps is None
            else [
                ddim_schedule(ddim_steps, num_training_steps=K, eta=e) for e in (eta, 0)
            ]
        )
        jax.tree.map(
            np.testing.assert_array_equal,
            [found.explore, found.deterministic],
            schedules,
        )


def test_cloning_draws_every_time_equally_often_and_time_0_is_the_cleanest():
    diffusion = make_diffusion(num_denoising_steps=K)
    cloning, schedule = diffusion_cloning(diffusion), diffusion.training
    times = jax.vmap(cloning.draw_time)(jax.random.split(jax.random.key(0), 5000))
    np.testing.assert_allclose(np.bincount(times, minlength=K), 1000, atol=150)
    time = jnp.array([0, 1, K - 1])
    x, told, _ = cloning.corrupt(ACTION, DRAWS[0], time)
    np.testing.assert_array_equal(told, time)
    for row, step in enumerate((K - 1, K - 2, 0)):
        signal, noise = schedule.signal[step], schedule.noise[step]
        expected = signal * ACTION[row] + noise * DRAWS[0, row]
        np.testing.assert_allclose(x[row], expected, rtol=1e-5)


def test_a_schedule_of_one_step_is_one_exact_move():
    schedule = ddpm_schedule(1)
    assert schedule.num_denoising_steps == 1
    np.testing.assert_allclose(schedule.mean_from_x0, 1, rtol=1e-6)


def test_defaults_are_the_settings_of_the_paper():
    """Eta 1 explores as DDPM does; clean actions lie in [-1, 1], draws within 3."""
    given = make_diffusion(
        num_denoising_steps=10,
        ddim_steps=K,
        eta=1.0,
        predict_noise=True,
        x0_clip=1.0,
        noise_clip=None,
        draw_clip=3.0,
        final_clip=None,
        min_log_prob_std=0.1,
    )
    default = make_diffusion(num_denoising_steps=10, ddim_steps=K)
    jax.tree.map(np.testing.assert_array_equal, default, given)


def euler_flow(num_denoising_steps, log_std):
    """A flow from noise at t = 0 to the action at t = 1 in Euler steps with learned
    noise: params are (velocity weight, noise weight)."""

    def move(params, x, step, condition):
        velocity = params[0] * (condition - x)
        std = jnp.exp(log_std + params[1] * jnp.abs(condition))
        return x + velocity / num_denoising_steps, std

    return Chain(
        explore=move,
        deterministic=lambda *args: (move(*args)[0], jnp.zeros((1, 1, 1))),
        num_denoising_steps=num_denoising_steps,
        draw_clip=jnp.inf,
        final_clip=None,
        min_log_prob_std=0.0,
    )


def test_a_chain_takes_any_move_and_a_learned_standard_deviation():
    """x' = x + v / K + std draw with a different std per row, also in the density."""
    num_denoising_steps, params = 4, (2.0, 0.5)
    chain, network = euler_flow(num_denoising_steps, -2.0), Encoded((2.0, 0.5), OBS)
    settings = dict(num_tuned=num_denoising_steps, min_std=0.0)
    entries, log_prob = sample_chain(
        chain,
        network,
        lambda step: network,
        DRAWS[: num_denoising_steps + 1],
        deterministic=False,
        **settings,
    )
    std = np.exp(-2.0 + params[1] * np.abs(np.asarray(OBS)))
    x = np.asarray(DRAWS[0])
    for k in range(num_denoising_steps):
        x = x + params[0] * (OBS - x) / num_denoising_steps + std * DRAWS[k + 1]
        np.testing.assert_allclose(entries[:, k + 1], x, rtol=1e-4, atol=1e-5)
        expected = -0.5 * DRAWS[k + 1] ** 2 - np.log(std * np.sqrt(2 * np.pi))
        np.testing.assert_allclose(log_prob[:, k], expected, rtol=1e-3, atol=1e-3)
    # The gradient reaches the parameter of the standard deviation.
    grad = jax.grad(
        lambda weight: move_log_prob(
            chain,
            Encoded((2.0, weight), OBS),
            entries[:, 0],
            entries[:, 1],
            jnp.zeros(B, jnp.int32),
        ).sum()
    )(0.5)
    slope = (jnp.abs(OBS) * (DRAWS[1] ** 2 - 1)).sum()
    np.testing.assert_allclose(grad, slope, rtol=1e-3)
    calm = sample_chain(
        chain,
        network,
        lambda step: network,
        DRAWS[: num_denoising_steps + 1],
        deterministic=True,
        **settings,
    )
    gap = (1 - params[0] / num_denoising_steps) ** num_denoising_steps
    np.testing.assert_allclose(
        calm.chain[:, -1], OBS + gap * (DRAWS[0] - OBS), rtol=1e-4, atol=1e-5
    )


def test_cloning_works_with_continuous_times():
    """x_t = (1 - t) noise + t action with the velocity action - noise as target."""

    def corrupt(action, noise, time):
        t = time[:, None, None]
        return (1 - t) * noise + t * action, time, action - noise

    cloning = Cloning(lambda key: jax.random.uniform(key), corrupt)
    time, noise = jnp.array([0.0, 0.25, 0.99]), DRAWS[0]

    def oracle(params, x, time, condition):
        return (ACTION - x) / (1 - time[:, None, None])

    loss = cloning_loss(cloning, oracle, None, ACTION, OBS, time, noise)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    silent = cloning_loss(
        cloning, lambda *args: jnp.zeros_like(ACTION), None, ACTION, OBS, time, noise
    )
    np.testing.assert_allclose(silent, ((ACTION - noise) ** 2).mean((-2, -1)), 1e-6)
