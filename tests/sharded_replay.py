"""The program for `test_replay` on four devices: python -m tests.sharded_replay.

It prints one line of JSON. The number of devices must be set before JAX starts.
"""

import json
import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from dppo_jax import replay  # noqa: E402
from dppo_jax.training import parallel  # noqa: E402
from tests import tiny  # noqa: E402

NUM_ENVS, NUM_STEPS, LENGTH, GROUPS = 8, 3, 5, 4
EXAMPLE = {"id": jnp.int32(0), "end": jnp.float32(0)}


def make(num_groups):
    """An algorithm that inserts and draws items; an id is 100 * step + environment."""

    def init(key):
        return {
            "online": replay.init(EXAMPLE, NUM_ENVS, NUM_ENVS * LENGTH),
            "offline": replay.fill(
                replay.init(EXAMPLE, NUM_ENVS, NUM_ENVS * LENGTH),
                {"id": -1 - jnp.arange(30), "end": jnp.zeros(30)},  # Uneven rings.
            ),
            # Batches: those of all devices are concatenated.
            "drawn": jnp.zeros(16, jnp.int32),
            "mixed": jnp.zeros(16, jnp.int32),
            "windows": jnp.zeros((16, 3), jnp.int32),
            "step": jnp.int32(0),
            "key": key,
        }

    def step(state):
        key, *keys = jax.random.split(state["key"], 4)
        time = state["step"] + jnp.arange(NUM_STEPS)[:, None]
        ids = 100 * time + parallel.local_part(jnp.arange(NUM_ENVS))
        items = {"id": ids, "end": (ids // 100 % 4 == 3).astype(jnp.float32)}
        online, groups = replay.insert(state["online"], items), num_groups
        mixed = replay.sample_mixed(
            online, state["offline"], keys[1], 16, num_groups=groups
        )
        windows, valid = replay.sample_windows(
            online, keys[2], 16, length=3, ends=lambda x: x["end"], num_groups=groups
        )
        return {
            "online": online,
            "offline": state["offline"],
            "drawn": replay.sample(online, keys[0], 16, num_groups=groups)["id"],
            "mixed": mixed["id"],
            "windows": jnp.where(valid, windows["id"], -1),
            "step": state["step"] + NUM_STEPS,
            "key": key,
        }, {}

    def split(state, num_devices):
        rings = {
            name: replay.partition(state[name], "envs")
            for name in ("online", "offline")
        }
        batches = dict.fromkeys(("drawn", "mixed", "windows"), parallel.SPLIT)
        return {**rings, **batches, "step": parallel.WHOLE, "key": parallel.WHOLE}

    return tiny.silent(jax.jit(init), step, params=lambda state: {}, split=split)


def run(devices):
    algorithm = parallel.shard(make(GROUPS), parallel.make_mesh(devices))
    state = algorithm.init(jax.random.key(0))
    step = jax.jit(algorithm.step)
    for _ in range(3):
        state, _ = step(state)
    state["key"] = jax.random.key_data(state["key"])
    return jax.tree.map(lambda x: x.tolist(), state)


if __name__ == "__main__":
    try:
        parallel.shard(make(1), parallel.make_mesh(4))
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    print(json.dumps({"one": run(1), "four": run(4), "refusal": refusal}))
