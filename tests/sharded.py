"""Programs for `test_parallel` on eight devices: python -m tests.sharded CASE ...

It prints one line of JSON, the results by case. The number of devices must be set
before JAX starts.
"""

import json
import os
import re
import sys
from unittest import mock

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import numpy as np  # noqa: E402

from dppo_jax.envs.build import default_config, make_env  # noqa: E402
from dppo_jax.envs.physics import compile_model, make_physics  # noqa: E402
from dppo_jax.evaluate import make_evaluate  # noqa: E402
from dppo_jax.normalize import Normalizer  # noqa: E402
from dppo_jax.training import parallel, seeds  # noqa: E402
from tests import tiny  # noqa: E402

DEVICES = 8
COLLECTIVES = "all-gather|all-to-all|collective-[a-z]+|reduce-scatter|all-reduce"
# Episodes of different lengths continue from one iteration to the next.
WORLD = dict(num_envs=16, shuffle_groups=8, epochs=2, reset_at_iteration=False)
CASES = {
    "pair": dict(actor__max_grad_norm=1e-2, batch_size=64),
    "chain": dict(
        batch_size=64, minibatch="chain", chain_kl__coef=0.5, chain_kl__limit=1e-3
    ),
    # More pairs than steps, so values are weighted; micro-batches; early stop. No
    # gradient clipping, so that the optimizer's moments show the size of gradients.
    "weighted": dict(
        batch_size=96,
        micro_batch_size=6,
        target_kl=1e-4,
        value_clip=0.1,
        entropy_coef=0.1,
    ),
    "annealed": dict(batch_size=64, tuned_steps_drop=1, tuned_steps_every=1),
    "gaussian": dict(batch_size=32, num_tuned_steps=1),
    "cloned": dict(batch_size=64, clone_coef=0.3),
    "fpo": dict(batch_size=16),
    "exact": dict(batch_size=16),
    "flow": dict(batch_size=64, entropy_coef=0.1, distance_coef=0.3, **tiny.FLOW_PPO),
}
# Small learning rates, because Adam's step for a gradient that is only a rounding error
# is as large as any other.
SAC = dict(
    replay__num_groups=8,
    replay__capacity=100,
    replay__random_steps=40,
    replay__updates_per_transition=0.125,
    replay__updates_per_round=2,
    num_critics=3,
    critic__learning_rate=1e-3,
    actor__learning_rate=1e-3,
)
DIFFUSION_Q = dict(
    replay__num_groups=8,
    replay__capacity=100,
    replay__updates_per_transition=0.125,
    critic_warmup=1,
    critic__learning_rate=1e-3,
    actor__learning_rate=1e-3,
)


def make(case, **changes):
    """The algorithm of a case, on the devices of `changes` or all."""
    env = tiny.point_env(WORLD["num_envs"], lengths=(3, 99), max_steps=16)
    if case == "sac":
        return tiny.make_tiny_sac(env, num_chunks=2, **SAC)
    if case in tiny.DIFFUSION_Q:
        return tiny.make_tiny_diffusion_q(case, env, num_chunks=2, **DIFFUSION_Q)
    if case in ("fpo", "exact"):
        make_tiny = tiny.make_tiny_fpo if case == "fpo" else tiny.make_tiny_exact
        return make_tiny(env=env, **(WORLD | CASES[case] | changes))
    policy = None
    if case == "gaussian":
        policy = tiny.tiny_gaussian_policy(learn_fixed_std=True)
    if case == "flow":
        policy = tiny.tiny_flow_policy()
    return tiny.make_tiny_ppo(policy, env, **(WORLD | CASES[case] | changes))


def run(algorithm, num_iterations=4):
    """As `tiny.run` without compiling `init`, plus the text of the compiled program."""
    state = seeds.copy(algorithm.init(jax.random.key(0)))
    step = jax.jit(algorithm.step, donate_argnums=0).lower(state).compile()
    rows = []
    for _ in range(num_iterations):
        state, metrics = step(state)
        rows.append({name: float(x) for name, x in metrics.items()})
    return state, rows, step.as_text()


def numbers(state):
    """All leaves of a state as lists."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]

    def plain(x):
        is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x).ravel().tolist()

    return {jax.tree_util.keystr(path): plain(x) for path, x in leaves}


def moved(text):
    """Kind of collective operation -> size of the largest one in a program."""
    largest = {}
    for shapes, kind in re.findall(rf"= (.*?) ({COLLECTIVES})(?:-start)?\(", text):
        sizes = [
            np.prod([int(n) for n in shape.split(",") if n], dtype=int)
            for shape in re.findall(r"\w\[([\d,]*)\]", shapes)
        ]
        largest[kind] = max(largest.get(kind, 0), int(sum(sizes)))
    return largest


def compare(case):
    """Results on one device and on eight."""
    algorithm, results = make(case), []
    for devices in (1, DEVICES):
        sharded = parallel.shard(algorithm, parallel.make_mesh(devices))
        state, rows, text = run(sharded)
        results.append(dict(state=numbers(state), rows=rows, moved=moved(text)))
    return results


def c_physics():
    """PPO on `avoid` with C MuJoCo, which runs in callbacks."""
    config = default_config()
    config.update(task="avoid", engine="mujoco", max_steps=8)
    bounds = (np.full(n, x) for n in (4, 2) for x in (-1.0, 1.0))
    env = make_env(config, normalizer=Normalizer(*bounds), chunk=2, num_envs=16)
    network = tiny.GaussianMLP(action_dim=2, chunk=2, hidden_sizes=(16,))
    return tiny.make_tiny_ppo(tiny.gaussian_policy(network), env, shuffle_groups=8)


def annealed_start():
    """An iteration from a policy with annealed K', on one and on eight devices.

    The parameters of such a policy hold K', unlike those of a new run.

    Returns:
        By number of devices: K' afterwards, whether the iteration changed parameters,
        and the first returns of the policy by number of environments.
    """
    params = tiny.tiny_diffusion_policy().init(jax.random.key(1), tiny.OBS)
    params = params._replace(num_active=jax.numpy.int32(1))
    found = {}
    for devices in (1, DEVICES):
        algorithm = parallel.shard(make("pair"), parallel.make_mesh(devices))
        state = algorithm.init(jax.random.key(0), params)
        state, metrics = jax.jit(algorithm.step)(state)
        trained = parallel.on_one_device(algorithm.params(state))
        first = {}
        for num_envs in (4, 7, 50):
            env = tiny.point_env(num_envs, lengths=(3, 99), max_steps=16)
            score = make_evaluate(env, algorithm.act, num_episodes=50)
            returns = score(trained, jax.random.key(5)).metrics["episode_return"]
            first[num_envs] = returns[:4].tolist()
        found[devices] = dict(
            num_active=int(state.params.num_active),
            moved=bool(metrics["params_change"] > 0),
            returns=first,
        )
    return found


def refusals():
    """Messages for algorithms that eight devices cannot share."""
    algorithms = {
        "one group": make("pair", shuffle_groups=1),
        "C physics": c_physics(),
        "no split": make("pair")._replace(split=None),
        "parts": make("pair", micro_batch_size=16),
    }
    said = {}
    for name, algorithm in algorithms.items():
        try:
            parallel.shard(algorithm, parallel.make_mesh(DEVICES))
        except ValueError as error:
            said[name] = str(error)
    return said


def own_device():
    """Devices of MJX's initial state if the first device belongs to another process."""
    local = jax.devices()[3:]
    xml = """<mujoco><worldbody><body><joint type="slide"/><geom size="0.1"/></body>
    </worldbody></mujoco>"""
    with mock.patch.object(jax, "local_devices", lambda: local):
        physics = make_physics(compile_model(xml), 1, "mjx")
        raw = physics.reset(jax.numpy.zeros(1), jax.numpy.zeros(1)).raw
    return sorted({d.id for leaf in jax.tree.leaves(raw) for d in leaf.devices()})


if __name__ == "__main__":
    others = {
        "refusals": refusals,
        "own device": own_device,
        "annealed start": annealed_start,
    }
    print(
        json.dumps(
            {
                case: others[case]() if case in others else compare(case)
                for case in sys.argv[1:]
            }
        )
    )
