"""All stages with a task, a network and a reward from a user's own file.

The file is the example of the documentation.
"""

import json
import re
import shutil

import numpy as np
import pytest

from dppo_jax.demonstrations.dataset import unnormalize_episodes
from dppo_jax.demonstrations.formats.dppo_npz import load_dppo_npz
from dppo_jax.deploy import load_policy
from experiments import collect, directories, evaluate, finetune, inputs, pretrain
from experiments.settings import load_config, override
from tests.conftest import REPOSITORY

DOCUMENTATION = (REPOSITORY / "docs" / "environments.md").read_text()
BONUS, MAX_STEPS, GOAL = 1.0, 8, 0.4

# Settings with which the stages take seconds.
TINY = (
    *(
        "model.chunk=2",
        "model.diffusion.num_denoising_steps=4",
        "critic.hidden_sizes=8",
    ),
    *("model.sampling.num_tuned_steps=2", "model.network.options.width=8"),
    *("collect.target_return=1.0", "collect.num_control_steps=80"),
    *("collect.rollout.random_steps=64", "collect.rollout.num_envs=8"),
    *("collect.rollout.num_chunks=16", "collect.ppo.batch_size=64"),
    *("collect.ppo.epochs=2", "collect.model.network.hidden_sizes=8"),
    *("collect.critic.hidden_sizes=8", "loop.collect.num_iterations=20"),
    *("loop.pretrain.num_epochs=2", "pretrain.warmup_epochs=1"),
    *("rollout.num_envs=4", "rollout.num_chunks=4", "loop.finetune.num_iterations=1"),
    *("algorithm.ppo.batch_size=16", "algorithm.ppo.epochs=1"),
    *("evaluate.num_episodes=4", "evaluate.num_envs=4"),
)


def make_config(*changes):
    """The configuration of `reach.py` in the current directory."""
    config = load_config("reach.py")
    override(config, (*TINY, *changes))
    return config


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with `reach.py` in which the stages have run by configuration alone."""
    folder = tmp_path_factory.mktemp("world")
    sources = re.findall(r"```python\n(.*?)```", DOCUMENTATION, re.DOTALL)
    (source,) = [x for x in sources if "def get_config" in x]
    (folder / "reach.py").write_text(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        collect.main(make_config())
        pretrain.main(make_config())
        finetune.main(make_config())
    return folder


@pytest.fixture
def here(world, monkeypatch):
    monkeypatch.chdir(world)
    return world


def score(run_dir, *changes):
    config = directories.config_of_run(str(run_dir))
    override(config, changes)
    return evaluate.main(config)


def test_demonstrations_hold_the_reward_of_the_wrapper(here):
    """The reward is bonus - |goal - position|, with the position after the step."""
    episodes = unnormalize_episodes(load_dppo_npz(here / "data" / "reach"))
    assert set(episodes.episode_lengths) == {MAX_STEPS}
    position, remaining = episodes.observations["state"].T.reshape(2, -1, MAX_STEPS)
    np.testing.assert_allclose(position + remaining, GOAL, atol=1e-5)
    np.testing.assert_allclose(
        episodes.rewards.reshape(-1, MAX_STEPS)[:, :-1],
        BONUS - np.abs(remaining[:, 1:]),
        atol=1e-5,
    )


def test_an_evaluation_earns_the_bonus_of_the_wrapper(here):
    shaped = score("runs/reach/finetune")
    plain = score("runs/reach/finetune", "env.wrappers=()")
    gained = shaped["episode_return"] - plain["episode_return"]
    assert gained == pytest.approx(BONUS * MAX_STEPS, abs=1e-4)
    assert shaped["episode_return"] < BONUS * MAX_STEPS


def test_an_evaluation_uses_its_sampling_settings(here):
    """Two steps of DDIM instead of the four of DDPM that it was cloned with."""
    cloned = score("runs/reach/pretrain")
    shorter = score("runs/reach/pretrain", "model.sampling.ddim_steps=2")
    assert cloned == score("runs/reach/pretrain")
    assert cloned["episode_return"] != shorter["episode_return"]


def test_bounds_of_random_actions_include_the_wrappers(here):
    """With a wrapper that hides an observation, for a policy with new networks."""
    (here / "hide.py").write_text(
        "def hide(env):\n"
        "    def only(obs):\n"
        "        return {'state': obs['state'][:1]}\n"
        "    def reset(key):\n"
        "        state = env.reset(key)\n"
        "        return state._replace(obs=only(state.obs))\n"
        "    def step(state, action):\n"
        "        state, outcome = env.step(state, action)\n"
        "        obs = only(outcome.obs)\n"
        "        return state._replace(obs=obs), outcome._replace(obs=obs)\n"
        "    return env._replace(reset=reset, step=step, obs_shape={'state': (1,)})\n"
    )
    config = make_config(
        "env.wrappers=hide.py:hide",
        "data=",
        "name=new",
        "rollout.random_steps=16",
    )
    bounds, _ = inputs.find_bounds(config, "new")
    assert bounds.obs_min.shape == (1,)


def test_the_network_of_the_file_is_trained(here):
    params = load_policy("runs/reach/finetune").params
    kernel = params.tuned["params"]["read"]["kernel"]
    assert kernel.shape == (2, 8)  # Do, options.width
    out = params.tuned["params"]["out"]["kernel"]
    assert out.shape == (8, 2)  # options.width, Ta Da


def test_a_run_that_was_moved_is_evaluated(here, tmp_path):
    """Started from the folder of the file's relative path, or with the new path."""
    expected = score("runs/reach/finetune")
    moved = tmp_path / "elsewhere"
    shutil.copytree("runs/reach/finetune", moved)
    assert score(moved) == expected
    assert json.loads((moved / "evaluation.json").read_text())["metrics"] == expected


def test_a_missing_file_is_named_with_the_cure(world, tmp_path, monkeypatch):
    run_dir = world / "runs" / "reach" / "finetune"
    expected = json.loads((run_dir / "evaluation.json").read_text())["metrics"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match="no file reach.py, looked for at .*kind names"
    ):
        score(run_dir)
    (tmp_path / "src").mkdir()
    shutil.copy(world / "reach.py", tmp_path / "src" / "reach.py")
    now = (
        "env.task=src/reach.py:make_task",
        "env.wrappers=src/reach.py:shape_reward",
        "model.network.kind=src/reach.py:make_network",
    )
    with pytest.raises(ValueError, match="no file reach.py.*env.task names it"):
        score(run_dir, *now[1:])
    with pytest.raises(ValueError, match="no file reach.py.*env.wrappers names it"):
        score(run_dir, now[0], now[2])
    assert score(run_dir, *now) == expected


def test_another_file_is_not_taken_for_one_that_moved(here, tmp_path):
    source = (here / "reach.py").read_text()
    other = tmp_path / "reach.py"
    other.write_text(source.replace("minval=-0.2", "minval=0.1"))
    message = "was trained with env.task='reach.py:make_task', but the config says"
    with pytest.raises(ValueError, match=message):
        score("runs/reach/finetune", f"env.task={other}:make_task")
    other.write_text(source)
    with pytest.raises(ValueError, match=message):
        score("runs/reach/finetune", f"env.task={other}:shape_reward")
    config = make_config(
        f"env.task={other}:make_task", "loop.finetune.num_iterations=2"
    )
    finetune.main(config)  # It resumes the run.


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "reshape(x.shape)",
            "reshape(len(x), -1)",
            r"shapes \[\(2, 2\)\].*\(2, 2, 1\)",
        ),
        (
            "jnp.broadcast_to(time, (batch,))",
            "time",
            r"time of all rows|all rows, \[1\]",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_refused_before_training(
    here, old, new, message
):
    source = (here / "reach.py").read_text()
    assert old in source
    (here / "wrong.py").write_text(source.replace(old, new))
    config = make_config("model.network.kind=wrong.py:make_network", "name=wrong")
    override(config, ["data=data/reach"])
    with pytest.raises(ValueError, match=message):
        pretrain.main(config)
    assert not (here / "runs" / "wrong").exists()
