"""Measures the time from demonstrations to a target."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from benchmarks.gpu.jobs import Row
from benchmarks.gpu.sizes import Sizes, products_in, shrink
from dppo_jax.algorithms import make_algorithm
from dppo_jax.algorithms.clone import make_pretrain
from dppo_jax.demonstrations.dataset import Episodes, normalize_episodes, windows
from dppo_jax.demonstrations.formats import load_demonstrations
from dppo_jax.envs.build import make_env
from dppo_jax.errors import SettingsError
from dppo_jax.evaluate import Evaluation, summarize
from dppo_jax.types import Algorithm, PyTree
from experiments import collect, evaluate, inputs
from experiments.settings import load_config


class Target(NamedTuple):
    """The goal of fine-tuning.

    metric: name of a metric, averaged over a deterministic evaluation.
    score: mean to reach.
    evaluate_every: iterations between evaluations.
    """

    config: str
    metric: str
    score: float
    evaluate_every: int


TARGETS = {
    "hopper": Target("experiments/configs/hopper.py:fast", "episode_return", 3000.0, 6),
    "avoid": Target("experiments/configs/avoid.py:demo", "success", 0.95, 10),
}


def demonstrations(config: ConfigDict, task: str, data: str | None) -> Episodes:
    """Scripted demonstrations for `avoid`, otherwise those in `data`.

    Raises:
        SettingsError: no data, for a task without a script.
    """
    if task == "avoid":
        return normalize_episodes(collect.collect_avoid(config))
    if data is None:
        raise SettingsError(f"{task} needs demonstrations; pass --data=FOLDER.")
    return load_demonstrations(data)


def measure_target(
    sizes: Sizes, data: str | None, task: str, precision: str
) -> Iterator[Row]:
    """Clone, then fine-tune until the target is reached; a row for each evaluation."""
    target = TARGETS[task]
    config = load_config(target.config)
    config.env.engine = "mjx"
    config.update_from_flattened_dict(sizes.target_settings[task])
    shrink(config, sizes)
    episodes = demonstrations(config, task, data)
    assert episodes.normalizer is not None  # Both kinds are normalised.
    begin = time.perf_counter()
    with products_in(precision):
        policy = inputs.build_policy(config, episodes.actions.shape[1])
        params = clone(config, policy, episodes)
        env = make_env(
            config.env,
            normalizer=episodes.normalizer,
            chunk=config.model.chunk,
            num_envs=config.rollout.num_envs,
        )
        algorithm = make_algorithm(env, policy, config)
        score = evaluate.make_score(config, algorithm.act, episodes.normalizer)
        for row in improve(algorithm, params, score, config, target.evaluate_every):
            row = {
                "iteration": row["iteration"],
                target.metric: row[target.metric],
                "target": target.score,
                "control steps": row["control steps"],
                "seconds": time.perf_counter() - begin,
            }
            yield row
            late = row["seconds"] > sizes.target_seconds
            if late or row[target.metric] >= target.score:
                return


def clone(config: ConfigDict, policy: Any, episodes: Episodes) -> PyTree:
    """The policy of `config`, cloned from `episodes`."""
    dataset = windows(episodes, chunk=config.model.chunk, history=config.env.history)
    algorithm = make_pretrain(policy, dataset, config.pretrain)
    state = jax.jit(algorithm.init)(jax.random.key(config.seed))
    step = jax.jit(algorithm.step)
    for _ in range(config.loop.pretrain.num_epochs):
        state, _ = step(state)
    return algorithm.params(state)


def improve(
    algorithm: Algorithm,
    params: PyTree,
    score: Callable[[PyTree], Evaluation],
    config: ConfigDict,
    evaluate_every: int,
) -> Iterator[Row]:
    """Fine-tune `params`; the means of evaluations before, during and after it."""
    yield summarize(score(params)) | {"iteration": 0, "control steps": 0}
    state = jax.jit(algorithm.init)(jax.random.key(config.seed), params)
    step = jax.jit(algorithm.step)
    for iteration in range(1, config.loop.finetune.num_iterations + 1):
        state, metrics = step(state)
        last = iteration == config.loop.finetune.num_iterations
        if last or iteration % evaluate_every == 0:
            steps = int(metrics["env_steps"])
            means = summarize(score(algorithm.params(state)))
            yield means | {"iteration": iteration, "control steps": steps}
