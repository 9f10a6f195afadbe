import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from dppo_jax import parallel
from tests import tiny
from tests.conftest import REPOSITORY

NO_DEVICES = dict(advantage_quantiles=(0.1, 0.9), clone_coef=0.1, shuffle_groups=1)


def child(*words, timeout=180):
    """A program of its own, which must end; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache_dir()},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def cache_dir():
    return str(jax.config.values["jax_compilation_cache_dir"])


@pytest.mark.parametrize(
    "case",
    [
        *("pair", "weighted"),
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("chain", "annealed")),
        pytest.param("gaussian", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_train_as_one_and_gather_nothing(case):
    """The losses, the parameters and every environment, after four iterations."""
    one, many = json.loads(child("tests.sharded", case))
    assert not one["all-gather"] and not one["all-reduce"]
    assert not many["all-gather"] and many["all-reduce"]
    assert len(one["rows"]) == 4
    for a, b in zip(one["rows"], many["rows"], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(
                *(a[name], b[name]), rtol=2e-3, atol=1e-4, err_msg=name
            )
    assert one["state"].keys() == many["state"].keys()
    for name in one["state"]:
        np.testing.assert_allclose(
            *(one["state"][name], many["state"][name]),
            rtol=1e-3,
            atol=1e-4,
            err_msg=name,
        )


def test_outside_of_a_sharded_step_the_reductions_leave_no_trace():
    """On one device the program is the one that it would be without them."""

    def reduced(x):
        x = parallel.total(parallel.mean(parallel.local_part(x), x[0]))
        return x * parallel.num_shards()

    x = np.arange(3.0)
    assert not jax.make_jaxpr(lambda x: parallel.mean(x))(x).eqns
    assert {str(e.primitive) for e in jax.make_jaxpr(reduced)(x).eqns} <= {
        *("mul", "slice", "squeeze", "convert_element_type", "dynamic_slice")
    }
    algorithm = tiny.make_tiny_ppo()
    assert parallel.shard(algorithm, parallel.make_mesh(1)) is algorithm


@pytest.mark.parametrize("name", NO_DEVICES)
def test_what_many_devices_cannot_compute_is_refused_by_name(name):
    changes = dict(shuffle_groups=2) | {name: NO_DEVICES[name]}
    algorithm = tiny.make_tiny_ppo(**changes)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    with pytest.raises(ValueError, match=name):
        algorithm.split(state, 2)


def test_groups_must_divide_environments_and_minibatches():
    with pytest.raises(ValueError, match="shuffle_groups=3 .* 4 environments"):
        tiny.make_tiny_ppo(shuffle_groups=3)
    with pytest.raises(ValueError, match="shuffle_groups=4 .* 6 pairs of a minibatch"):
        tiny.make_tiny_ppo(shuffle_groups=4, batch_size=6)
    with pytest.raises(ValueError, match="shuffle_groups=4 .* 2 chains of a minib"):
        tiny.make_tiny_ppo(shuffle_groups=4, batch_size=4, minibatch="chain")


def test_only_environments_are_split():
    algorithm = tiny.make_tiny_ppo(shuffle_groups=2)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    split = algorithm.split(state, 2)
    sizes = jax.tree.map(lambda x, y: x.shape[0] if y else 4, state, split)
    assert set(jax.tree.leaves(sizes)) == {4}
    for name in ("params", "critic_params", "actor_optimizer", "key", "iteration"):
        assert not any(jax.tree.leaves(getattr(split, name)))


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match="mesh.devices=99, but JAX sees"):
        parallel.make_mesh(99)
