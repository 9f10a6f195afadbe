import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dppo_jax.deploy import load_policy
from dppo_jax.errors import SettingsError
from dppo_jax.training import parallel
from dppo_jax.training.checkpoint import load_critic, newest_checkpoint
from dppo_jax.training.metric_names import TIMES
from dppo_jax.training.metrics import read_metrics
from experiments import collect, finetune, pretrain, processes
from experiments.configs import avoid
from tests import stages, tiny
from tests.conftest import REPOSITORY

SLOW = pytest.mark.slow
NO_DEVICES = dict(advantage_quantiles=(0.1, 0.9), shuffle_groups=1)


# `avoid` in seconds. Steps are large, so that a difference would grow.
TINY = stages.TINY | {
    "loop.pretrain.num_epochs": 1,
    "pretrain.warmup_epochs": 0,
    "loop.finetune.num_iterations": 5,
    "rollout.num_envs": 8,
    "algorithm.ppo.batch_size": 16,
    "algorithm.ppo.epochs": 2,
    "algorithm.ppo.shuffle_groups": 8,
    "algorithm.ppo.actor.learning_rate": 1e-2,
    "algorithm.ppo.actor.min_learning_rate": 1e-2,
}


def start(*words, **environment):
    """Start a separate program on CPU devices; the caller must wait for it."""
    cache = str(jax.config.values["jax_compilation_cache_dir"])
    environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*programs, timeout=600):
    """Wait for programs and return their output; one that hangs or fails ends all."""
    try:
        results = [program.communicate(timeout=timeout) for program in programs]
    finally:
        for program in programs:
            program.kill()
    for program, (_, error) in zip(programs, results):
        assert program.returncode == 0, error[-3000:]
    return [printed for printed, _ in results]


def sharded(*cases):
    """Results of programs on eight devices, by case."""
    return json.loads(finish(start("tests.sharded", *cases))[0])


@pytest.fixture(scope="module")
def results():
    """Those of `TOGETHER`."""
    return sharded(*TOGETHER)


@pytest.fixture(scope="module")
def annealed_start():
    return sharded("annealed start")["annealed start"]


# Cases of `sharded.py` that share one process, which takes seconds to start.
TOGETHER = ("pair", "sac", "refusals", "own device")
KINDS = ("weighted", "chain", "annealed", "gaussian", "cloned", "fpo", "exact")
KINDS += ("idql", "dql", "qsm", "dipo", "ogpo")
CASES = [
    *("pair", "sac"),
    *(pytest.param(x, marks=SLOW) for x in KINDS),
]


@pytest.mark.parametrize("case", CASES)
def test_eight_devices_train_as_one_and_gather_nothing(case, results):
    """Compares losses, parameters and environments after four iterations."""
    one, many = results[case] if case in TOGETHER else sharded(case)[case]
    # Devices exchange only sums, none with more numbers than there are parameters.
    assert not one["moved"] and many["moved"].keys() == {"all-reduce"}
    learned = [x for name, x in many["state"].items() if "params" in name]
    assert many["moved"]["all-reduce"] <= sum(map(len, learned))
    assert len(one["rows"]) == 4
    for a, b in zip(one["rows"], many["rows"], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(
                a[name], b[name], rtol=2e-3, atol=1e-4, err_msg=name
            )
    assert one["state"].keys() == many["state"].keys()
    for name in one["state"]:
        np.testing.assert_allclose(
            one["state"][name],
            many["state"][name],
            rtol=1e-3,
            atol=1e-4,
            err_msg=name,
        )


def test_outside_of_a_sharded_step_reductions_add_nothing():
    """On one device the program is the same as without them."""

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


def test_what_cannot_be_shared_is_refused_before_anything_runs(results):
    said = results["refusals"]
    assert "shuffle_groups=1 must be a multiple of the 8 devices" in said["one group"]
    assert "engine='mujoco' works with one CPU device" in said["C physics"]
    assert "this algorithm runs on one device" in said["no split"]
    assert "micro_batch_size=16 must divide the 8 rows" in said["parts"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mesh.devices": 2, "num_seeds": 2}, "num_seeds=2 with mesh.devices=2"),
        ({"mesh.devices": 2, "env.task": "gymnasium:Hopper-v5"}, "in host processes"),
        ({"mesh.coordinator": "localhost:1"}, "need .*distributed=True"),
        (
            {"mesh.coordinator": "localhost", "mesh.distributed": True}
            | {"mesh.num_processes": 2, "mesh.process_id": 0},
            "mesh.coordinator='localhost' must be HOST:PORT",
        ),
        ({"mesh.devices": -1}, "mesh.devices=-1, but JAX sees"),
    ],
)
def test_an_impossible_mesh_is_refused(changes, message):
    config = avoid.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        processes.join_mesh(config)


@SLOW
def test_an_evaluation_depends_on_neither_devices_nor_environments(annealed_start):
    """The first four returns with 4, 7 and 50 environments on one and eight devices."""
    found = {
        f"{devices} devices, {num_envs}": returns
        for devices, after in annealed_start.items()
        for num_envs, returns in after["returns"].items()
    }
    assert len(found) == 6
    expected = found["1 devices, 4"]
    assert len(set(expected)) == 4
    for name, returns in found.items():
        np.testing.assert_allclose(returns, expected, rtol=1e-4, err_msg=name)


@SLOW
def test_many_devices_continue_from_a_policy_with_annealed_steps(annealed_start):
    for after in annealed_start.values():
        assert after["num_active"] == 1 and after["moved"]


def test_mjx_uses_only_devices_of_its_process(results):
    """The first of all devices belongs to another process, except in the first one."""
    assert results["own device"] == [3]


def test_a_process_that_fails_does_not_wait_for_the_others(monkeypatch, capsys):
    """At an ordinary exit JAX would wait for all other processes."""

    class Left(BaseException):
        pass

    def leave(code):
        raise Left(code)

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(os, "_exit", leave)
    for error, code in ((SettingsError("wrong"), 2), (RuntimeError("broken"), 1)):
        with pytest.raises(Left) as left:
            with processes.leaving_at_once(), processes.errors_in_one_line():
                raise error
        assert left.value.args == (code,)
    said = capsys.readouterr().err
    assert "error: wrong" in said and "RuntimeError: broken" in said
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        with processes.leaving_at_once(), processes.errors_in_one_line():
            raise SettingsError("wrong")


def test_pretraining_stays_on_one_device(capsys):
    config = avoid.get_config()
    config.mesh.devices = 8
    processes.stay_on_one_device(config, "pretrain")
    assert "experiments.pretrain runs on one device" in capsys.readouterr().out
    config.mesh.distributed = True
    with pytest.raises(ValueError, match="pretrain runs in one process"):
        processes.stay_on_one_device(config, "pretrain")


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match="mesh.devices=99, but JAX sees"):
        parallel.make_mesh(99)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a cloned policy."""
    folder = tmp_path_factory.mktemp("world")
    collect.main(make_config(folder, "collect"))
    pretrain.main(make_config(folder, "pretrain"))
    return folder


def make_config(folder, name, **changes):
    config = avoid.get_config("m1")
    config.update_from_flattened_dict(TINY)
    config.data, config.run_dir = str(folder / "data"), str(folder / name)
    config.policy = str(folder / "pretrain")
    config.update_from_flattened_dict(changes)
    return config.lock()


def command(folder, name, **changes):
    """The command that starts fine-tuning with the settings of `make_config`."""
    settings = {k: v for k, v in TINY.items() if not k.startswith("collect.modes")}
    settings |= {"policy": folder / "pretrain", "run_dir": folder / name} | changes
    return [
        *("experiments.finetune", "--config=experiments/configs/avoid.py:m1"),
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]


def check_same_run(one, other):
    """Compare the metrics of all five iterations and the final policy."""
    a, b = ({int(x["iteration"]): x for x in read_metrics(run)} for run in (one, other))
    assert sorted(a) == sorted(b) == list(range(6))
    for i in a:
        for name in (a[i].keys() & b[i].keys()) - {*TIMES}:
            np.testing.assert_allclose(
                a[i][name], b[i][name], rtol=5e-3, atol=1e-4, err_msg=f"{i} {name}"
            )
    assert max(x["params_change"] for x in a.values() if "params_change" in x) > 1e-2
    for load in (lambda run: load_policy(run).params, load_critic):
        for x, y in zip(*(jax.tree.leaves(load(run)) for run in (one, other))):
            np.testing.assert_allclose(x, y, rtol=1e-2, atol=1e-4)


def start_two(folder, name, **settings):
    """Start fine-tuning in two processes that share the run."""
    mesh = {"distributed": True, "devices": 0, "num_processes": 2}
    mesh["coordinator"] = f"localhost:{free_port()}"
    settings |= {f"mesh.{key}": value for key, value in mesh.items()}
    return [
        start(*command(folder, name, **settings, **{"mesh.process_id": i}))
        for i in range(2)
    ]


@SLOW
def test_sigterm_to_one_process_ends_both_after_the_same_iteration(world):
    """JAX tells the other one, and both save the same iteration."""
    run_dir = world / "terminated"
    settings = {"loop.finetune.num_iterations": 100_000}
    running = start_two(world, "terminated", **settings)
    until = time.monotonic() + 300
    try:
        while len(read_metrics(run_dir)) < 4 and time.monotonic() < until:
            assert all(process.poll() is None for process in running)
            time.sleep(0.2)
        running[1].send_signal(signal.SIGTERM)
        printed = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [143, 143], printed
    last = newest_checkpoint(run_dir)
    assert last == read_metrics(run_dir)[-1]["iteration"]
    assert f"resumes from iteration {last}" in printed[0][0]


@SLOW
def test_two_processes_train_save_and_resume_as_one(world):
    """Interrupted after three iterations; only one process writes the directory."""
    finetune.main(make_config(world, "one_process"))

    def both(num_iterations):
        # The target is never reached, and the processes must agree on that.
        settings = {"loop.finetune.stop_at_return": 1000.0}
        settings["loop.finetune.num_iterations"] = num_iterations
        return finish(*start_two(world, "two_processes", **settings))

    both(3)
    printed = both(5)
    assert "resuming at iteration 3 of 5" in printed[0]
    assert "resuming" not in printed[1] and "writing" not in printed[1]
    check_same_run(world / "one_process", world / "two_processes")


@SLOW
def test_eight_devices_train_avoid_as_one_and_one_device_resumes(world):
    engine = {"env.engine": "mjx"}
    finetune.main(make_config(world, "one_device", **engine))
    flags = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )
    settings = {"mesh.devices": 8, "loop.finetune.num_iterations": 3}
    words = command(world, "eight_devices", **engine, **settings)
    finish(start(*words, XLA_FLAGS=flags))
    # One device resumes the checkpoint of eight.
    finetune.main(make_config(world, "eight_devices", **engine))
    check_same_run(world / "one_device", world / "eight_devices")


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
