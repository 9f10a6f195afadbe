"""Small environments, policies and settings that the tests of training share.

Those of the same arguments are the same object, so that JAX traces what is compiled of
them once.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dppo_jax import policies
from dppo_jax.algorithms import ALGORITHMS, fpo, ppo, ppo_exact, sac
from dppo_jax.diffusion import denoising, flow
from dppo_jax.envs.core import vectorize
from dppo_jax.envs.wrappers import chunk_actions, stack_observations, time_limit
from dppo_jax.networks import DiffusionMLP, GaussianMLP, MixtureMLP, StateCritic
from dppo_jax.networks.noise import NoiseMLP
from dppo_jax.normalize import Normalizer
from dppo_jax.policies import (
    ChainPolicy,
    diffusion_policy,
    flow_policy,
    gaussian_policy,
    gmm_policy,
)
from dppo_jax.policies.squashed import SquashedPolicy, squashed_policy
from dppo_jax.rollout import env_keys
from dppo_jax.types import BREAK, Algorithm, Array, Env, Obs, TimeStep, VecEnv

GOAL = 0.5
CHUNK, ACTION_DIM = 2, 1
NUM_STEPS, NUM_TUNED = 4, 2  # K, K'
OBS = {"state": jnp.array([[[0.0, 0.1]], [[0.3, -0.2]], [[-0.5, 0.4]]])}  # B = 3

NORMALIZER = Normalizer(
    obs_min=jnp.full(2, -1.0),
    obs_max=jnp.full(2, 1.0),
    action_min=jnp.full(ACTION_DIM, -1.0),
    action_max=jnp.full(ACTION_DIM, 1.0),
)


class PointState(NamedTuple):
    """length: [] steps of this episode; step: steps taken so far."""

    length: Array
    step: Array
    obs: Obs


def point_task(lengths: tuple[int, ...] = (1,)) -> Env:
    """Reward -(action - GOAL)^2; terminates after a length drawn from `lengths`.

    The observation is (last action, steps taken), the whole state but the length.
    """

    def reset(key: Array) -> PointState:
        length = jax.random.choice(key, jnp.array(lengths))
        return PointState(length, jnp.int32(0), {"state": jnp.zeros(2)})

    def step(state: PointState, action: Array) -> tuple[PointState, TimeStep]:
        count = state.step + 1
        obs = {"state": jnp.stack([action[0], count.astype(jnp.float32)])}
        outcome = TimeStep(
            obs=obs,
            reward=-((action[0] - GOAL) ** 2),
            terminated=(count >= state.length).astype(jnp.float32),
            truncated=jnp.float32(0),
            metrics={"steps": count.astype(jnp.float32)},
            trace={"action": action},
        )
        return PointState(state.length, count, obs), outcome

    return Env(reset, step, {"state": (2,)}, (ACTION_DIM,), None)


@functools.cache
def point_env(
    num_envs: int = 4,
    *,
    lengths: tuple[int, ...] = (1,),
    max_steps: int = 8,
    trace: tuple[str, ...] = (),
) -> VecEnv:
    """`point_task` with the wrappers of a real task."""
    env = stack_observations(time_limit(point_task(lengths), max_steps), 1)
    env = vectorize(chunk_actions(env, CHUNK, trace), num_envs)
    return env._replace(reset=jax.jit(env.reset))


def start(env: VecEnv, key: Array) -> Any:
    """Reset every environment with its own key."""
    return env.reset(env_keys(key, env.num_envs))


def _shared(make: Callable[..., Any]) -> Callable[..., Any]:
    """Make a policy only once for the same arguments, and compile how it starts."""

    @functools.cache
    @functools.wraps(make)
    def made(*args: Any, **settings: Any) -> Any:
        policy = make(*args, **settings)
        return policy._replace(init=jax.jit(policy.init))

    return made


@_shared
def tiny_diffusion_policy(num_tuned: int = NUM_TUNED, **settings: Any) -> ChainPolicy:
    """K = 4 steps of a network with one hidden layer of 16."""
    bounds = {
        name: settings.pop(name)
        for name in ("ddim_steps", "x0_clip", "noise_clip", "draw_clip", "final_clip")
        if name in settings
    }
    network = DiffusionMLP(
        action_dim=ACTION_DIM,
        chunk=CHUNK,
        time_dim=4,
        hidden_sizes=(16,),
        compute_dtype=settings.pop("compute_dtype", "float32"),
    )
    return diffusion_policy(
        network,
        denoising.make_diffusion(num_denoising_steps=NUM_STEPS, **bounds),
        chunk=CHUNK,
        action_dim=ACTION_DIM,
        num_tuned_steps=num_tuned,
        **settings,
    )


# Functions of policies that `jitted` compiles.
COMPILED = ("act", "sample", "prepare", "log_prob", "chain_log_prob", "clone_loss")
COMPILED += ("entropy", "chain_moments")


@functools.cache
def jitted(policy: Any) -> Any:
    """The same policy, whose functions are compiled, once for each shape."""

    def compiled(function: Any) -> Any:
        names = inspect.signature(function).parameters
        static = [name for name in ("deterministic", "target_of") if name in names]
        return jax.jit(function, static_argnames=static)

    functions = {
        name: compiled(getattr(policy, name))
        for name in COMPILED
        if callable(getattr(policy, name, None))
    }
    return policy._replace(**functions)


def shared(make: Callable[..., Any]) -> Callable[..., Any]:
    """Make an algorithm only once for the same arguments, if these can be compared."""
    made = functools.cache(make)

    @functools.wraps(make)
    def once(*args: Any, **settings: Any) -> Any:
        try:
            hash((args, tuple(settings.values())))
        except TypeError:
            return make(*args, **settings)
        return made(*args, **settings)

    return once


# Changes of `tiny_ppo_config` that fine-tune a flow as ReinFlow does.
FLOW_PPO = dict(
    minibatch="chain", ratio="chain", denoising_discount=1.0, clip_base=0.01
)


@_shared
def tiny_flow_policy(
    num_steps: int = 2,
    num_tuned: int | None = None,
    *,
    network: Any = None,
    has_noise_network: bool = True,
    **bounds: Any,
) -> ChainPolicy:
    """Euler steps of a network with one hidden layer of 16, and one of 8 for noise."""
    if network is None:
        network = DiffusionMLP(
            action_dim=ACTION_DIM, chunk=CHUNK, time_dim=4, hidden_sizes=(16,)
        )
    noise_network = NoiseMLP(
        action_dim=ACTION_DIM, chunk=CHUNK, hidden_sizes=(8,), time_dim=4
    )
    return flow_policy(
        network,
        flow.make_flow(num_steps=num_steps, **bounds),
        flow.flow_cloning(),
        chunk=CHUNK,
        action_dim=ACTION_DIM,
        num_tuned_steps=num_tuned,
        noise_network=noise_network if has_noise_network else None,
    )


@_shared
def tiny_gaussian_policy(
    fixed_std: float = 0.2, *, learn_fixed_std: bool = False
) -> ChainPolicy:
    """A mean from one hidden layer of 16, and a separate standard deviation."""
    network = GaussianMLP(
        action_dim=ACTION_DIM,
        chunk=CHUNK,
        hidden_sizes=(16,),
        fixed_std=fixed_std,
        learn_fixed_std=learn_fixed_std,
    )
    return gaussian_policy(network)


@_shared
def tiny_gmm_policy(fixed_std: float = 0.5) -> ChainPolicy:
    """Three modes, from perceptrons with one hidden layer of 16."""
    network = MixtureMLP(
        action_dim=ACTION_DIM,
        chunk=CHUNK,
        num_modes=3,
        hidden_sizes=(16,),
        fixed_std=fixed_std,
    )
    return gmm_policy(network)


def tiny_critic() -> StateCritic:
    """V(s) with one hidden layer of 16."""
    return StateCritic(hidden_sizes=(16,))


def tiny_ppo_config(**changes: Any):
    """`ppo.default_config` for 4 environments x 4 chunks x K' = 2 moves, 32 pairs."""
    config = ppo.default_config()
    config.update(batch_size=16, epochs=2)
    for rate in (config.actor, config.critic):
        rate.update(learning_rate=1e-2, min_learning_rate=1e-2, warmup_steps=0)
    config.update_from_flattened_dict(changes)
    return config


@shared
def make_tiny_ppo(
    policy: ChainPolicy | None = None,
    env: VecEnv | None = None,
    critic: Any = None,
    *,
    num_envs: int = 4,
    num_chunks: int = 4,
    num_tuned_steps: int = NUM_TUNED,
    reset_at_iteration: bool = True,
    **changes: Any,
):
    """PPO on `point_env`; write dots in names of `changes` as double underscores.

    Args:
        num_envs, num_tuned_steps: used if `env` and `policy` are not given.
    """
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return ppo.make_ppo(
        point_env(num_envs) if env is None else env,
        tiny_diffusion_policy(num_tuned_steps) if policy is None else policy,
        tiny_critic() if critic is None else critic,
        tiny_ppo_config(**changes),
        num_chunks=num_chunks,
        reset_at_iteration=reset_at_iteration,
    )


@shared
def make_tiny_fpo(
    policy: ChainPolicy | None = None,
    env: VecEnv | None = None,
    *,
    num_envs: int = 4,
    num_chunks: int = 4,
    reset_at_iteration: bool = True,
    **changes: Any,
):
    """FPO++ on `point_env`, 16 chunks with 4 pairs each; as `make_tiny_ppo`."""
    return fpo.make_fpo(
        point_env(num_envs) if env is None else env,
        noiseless_flow_policy() if policy is None else policy,
        tiny_critic(),
        _chunk_config(fpo, **(dict(num_pairs=4) | changes)),
        num_chunks=num_chunks,
        reset_at_iteration=reset_at_iteration,
    )


@shared
def make_tiny_exact(
    policy: ChainPolicy | None = None,
    env: VecEnv | None = None,
    *,
    num_envs: int = 4,
    num_chunks: int = 4,
    num_tuned_steps: int = NUM_TUNED,
    reset_at_iteration: bool = True,
    **changes: Any,
):
    """PPO with the exact likelihood on `point_env`, 16 chunks; as `make_tiny_ppo`."""
    return ppo_exact.make_ppo_exact(
        point_env(num_envs) if env is None else env,
        tiny_diffusion_policy(num_tuned_steps) if policy is None else policy,
        tiny_critic(),
        _chunk_config(ppo_exact, **changes),
        num_chunks=num_chunks,
        reset_at_iteration=reset_at_iteration,
    )


def _chunk_config(algorithm: Any, **changes: Any):
    """Two epochs of minibatches of 8 chunks."""
    config = algorithm.default_config()
    config.update(batch_size=8, epochs=2)
    for rate in (config.actor, config.critic):
        rate.update(learning_rate=1e-2, min_learning_rate=1e-2, warmup_steps=0)
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return config


def noiseless_flow_policy(num_steps: int = 4, **bounds: Any) -> ChainPolicy:
    """A flow whose moves have nearly no noise, as FPO uses it."""
    bounds = dict(std_min=flow.LEAST_STD, std_max=flow.LEAST_STD) | bounds
    return tiny_flow_policy(num_steps, has_noise_network=False, **bounds)


@_shared
def tiny_squashed_policy() -> SquashedPolicy:
    """Mean and standard deviation of one hidden layer of 32."""
    network = GaussianMLP(
        action_dim=ACTION_DIM,
        chunk=CHUNK,
        hidden_sizes=(32,),
        activation="relu",
        tanh_output=False,
        std_min=0.01,
        std_max=7.0,
    )
    return squashed_policy(network)


@shared
def make_tiny_sac(
    env: VecEnv | None = None,
    *,
    num_chunks: int = 4,
    reset_at_iteration: bool = False,
    **changes: Any,
):
    """SAC on `point_env`: 16 transitions and 16 updates of 32 rows per iteration."""
    config = ConfigDict()
    config.rollout = dict(num_chunks=num_chunks, reset_at_iteration=reset_at_iteration)
    config.critic = dict(hidden_sizes=(32,), activation="relu")
    config.algorithm = dict(sac=sac.default_config())
    settings = config.algorithm.sac
    settings.replay.update(capacity=400, batch_size=32, random_steps=0, min_fill=0)
    for name in ("actor", "critic", "temperature"):
        settings[name].learning_rate = 1e-2
    settings.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    env = point_env(4) if env is None else env
    return sac.make(env, tiny_squashed_policy(), config)


# Off-policy algorithms for diffusion policies.
DIFFUSION_Q = ("idql", "dql", "qsm", "dipo", "ogpo")


def diffusion_q_config(name: str, *, num_chunks: int = 4, **changes: Any):
    """A whole configuration: 16 transitions and 8 updates of 32 rows per iteration."""
    config = ConfigDict()
    config.model = policies.default_config()
    config.model.chunk = CHUNK
    config.model.diffusion.num_denoising_steps = NUM_STEPS
    config.model.sampling.num_tuned_steps = NUM_STEPS
    config.rollout = dict(num_chunks=num_chunks, reset_at_iteration=False)
    config.critic = dict(hidden_sizes=(32,), activation="relu")
    config.algorithm = {name: ALGORITHMS[name].default_config()}
    settings = config.algorithm[name]
    settings.replay.update(capacity=400, batch_size=32, updates_per_transition=0.5)
    settings.update(reward_scale=1.0, critic_warmup=0)
    for part in (settings.actor, settings.critic):
        part.learning_rate = 1e-2
    if name == "idql":
        settings.num_samples = 3
    if name == "ogpo":
        settings.replay.min_fill = 0
        settings.update(num_critics=2, group_size=4, actor_states=8, num_samples=3)
    settings.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return config


@shared
def make_tiny_diffusion_q(
    name: str, env: VecEnv | None = None, *, num_chunks: int = 4, **changes: Any
):
    """One of `DIFFUSION_Q` on `point_env`, see `diffusion_q_config`."""
    config = diffusion_q_config(name, num_chunks=num_chunks, **changes)
    env = point_env(4) if env is None else env
    return ALGORITHMS[name].make(env, tiny_diffusion_policy(NUM_STEPS), config)


def silent(init, step, params, **more: Any) -> Algorithm:
    """An Algorithm that must not act, and whose loss must be finite."""

    def act(*args: Any, **settings: Any) -> Any:
        raise AssertionError("nothing should act here")

    return Algorithm(
        init=init, step=step, params=params, act=act, finite=("loss",), **more
    )


def compiled(algorithm: Algorithm) -> list[Any]:
    """The programs of an iteration, phase by phase as training runs them on a CPU.

    Algorithms that differ in their updates alone share the program of the roll-out.
    """
    return [jax.jit(phase) for phase in algorithm.phases or (algorithm.step,)]


def iterate(programs: list[Any], state: Any) -> tuple[Any, Any]:
    """Run the programs of an iteration; return the state and the metrics."""
    result: tuple = (state,)
    for program in programs:
        result = program(*result)
    state, metrics = result
    return state, metrics


def run(algorithm, num_iterations: int, *, seed: int = 0):
    """The final state and the metrics of every iteration, as numbers."""
    programs = compiled(algorithm)
    state, rows = algorithm.init(jax.random.key(seed)), []
    for _ in range(num_iterations):
        state, metrics = iterate(programs, state)
        rows.append({k: float(x) for k, x in metrics.items() if k != BREAK})
    return state, rows


def random_params(module: Any, *inputs: Any, seed: int = 0) -> Any:
    """Parameters none of which are zero or as small as they start; nothing compiles."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return random_like(shapes, seed=seed)


def random_like(shapes: Any, *, seed: int = 0) -> Any:
    """Random numbers in the shapes of a tree; nothing compiles."""
    draws = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (0.3 * draws.normal(size=x.shape)).astype(np.float32), shapes
    )


def same(one: Any, other: Any, *, tolerance: float = 0.0) -> bool:
    """Whether all leaves are equal: bit for bit, or numbers within a tolerance."""

    def equal(a: Any, b: Any) -> bool:
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        if tolerance:
            return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance))
        return bool((a == b).all())

    return all(
        equal(a, b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )
