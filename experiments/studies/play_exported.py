"""Score an exported policy in a simulation of its own; `transfer` starts this program.

python -m experiments.studies.play_exported POLICY RUN [EPISODES [SEED]] [--config...]

POLICY is a folder of experiments.deploy, RUN the run whose settings of `env` describe
the task; --config.KEY=VALUE changes them. The task runs in single control steps, and
the policy acts by the loader in its folder, without the networks of this package. It
prints the scores as a line of JSON.
"""

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dppo_jax import runtime
from dppo_jax.envs.build import make_env
from dppo_jax.errors import SettingsError
from dppo_jax.evaluate import Evaluation, summarize
from dppo_jax.exported import LOADER
from dppo_jax.normalize import Normalizer, normalize_action, unnormalize_obs
from experiments import processes
from experiments.command_line import split_changes
from experiments.directories import config_of_run
from experiments.settings import override


def main(
    folder: str, run: str, num_episodes: int, seed: int, changes: Sequence[str]
) -> dict[str, float]:
    """Run the program; returns and prints the mean of every metric.

    Raises:
        SettingsError: a wrong setting, or a folder without an exported policy.
    """
    config = config_of_run(run)
    override(config, changes, "--config.")
    result = play(load_exported(folder, seed), config.env, num_episodes, seed)
    print(json.dumps(result))
    return result


def load_exported(folder: str, seed: int) -> Any:
    """The policy in a folder, by the loader that lies beside it.

    Raises:
        SettingsError: there is none.
    """
    path = Path(folder) / LOADER
    if not path.is_file():
        raise SettingsError(f"{path} is missing; name a folder of experiments.deploy.")
    spec = importlib.util.spec_from_file_location("exported_policy", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ExportedPolicy(folder, seed=seed)


def play(
    policy: Any, env_config: ConfigDict, num_episodes: int, seed: int
) -> dict[str, float]:
    """Play episodes with a policy in task units; means of their metrics.

    Args:
        policy: as `ExportedPolicy`; it keeps its own history.
        seed: episode i starts from key seed + i.
    """
    bounds = {name: np.array(x) for name, x in policy.about["bounds"].items()}
    normalizer = Normalizer(**bounds)
    own = env_config.copy_and_resolve_references()
    own.update(history=1, executed=1)
    env = make_env(own, normalizer=normalizer, chunk=1, num_envs=1)
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    ends: list[dict[str, float]] = []
    for i in range(num_episodes):
        state, is_over = reset(jax.random.key(seed + i)[None]), False
        policy.reset()
        while not is_over:
            seen = {name: np.asarray(x)[0, 0] for name, x in state.obs.items()}
            seen["state"] = np.asarray(unnormalize_obs(normalizer, seen["state"]))
            action = np.asarray(normalize_action(normalizer, policy(seen)))
            state, outcome = step(state, action[None, None].astype(np.float32))
            is_over = bool(outcome.terminated[0] or outcome.truncated[0])
        ends.append({name: float(x[0]) for name, x in outcome.metrics.items()})
    joined: Any = {name: np.array([x[name] for x in ends]) for name in ends[0]}
    return summarize(Evaluation(joined, {}))


if __name__ == "__main__":
    with processes.errors_in_one_line():
        own_changes, words = split_changes(sys.argv[1:])
        if not 2 <= len(words) <= 4 or not all(x.isdigit() for x in words[2:]):
            raise SettingsError(f"{words} given; write POLICY RUN [EPISODES [SEED]].")
        runtime.configure()
        count, first = [int(x) for x in words[2:]] + [20, 0][len(words) - 2 :]
        main(words[0], words[1], count, first, own_changes)
