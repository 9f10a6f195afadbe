"""Score an exported policy in an environment of Gymnasium, without dppo_jax.

    python -m experiments.deploy runs/hopper_fast/finetune hopper_policy
    python examples/run_in_gymnasium.py hopper_policy Hopper-v5 --episodes 40

It needs the folder that `experiments.deploy` wrote, JAX with flatbuffers, NumPy and
gymnasium[mujoco]. Keyword arguments of the environment follow as NAME=VALUE.
"""

import argparse
import ast
import importlib.util
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np


def load(folder: str, seed: int) -> Any:
    """The policy in the folder, by the loader that lies beside it."""
    path = Path(folder) / "exported_policy.py"
    spec = importlib.util.spec_from_file_location("exported_policy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ExportedPolicy(folder, seed=seed)


def play(policy: Any, env: gymnasium.Env, seed: int) -> tuple[float, int]:
    """Play one episode; its return and its length."""
    obs, _ = env.reset(seed=seed)
    policy.reset()
    total, steps = 0.0, 0
    while True:
        action = np.clip(policy(obs), env.action_space.low, env.action_space.high)
        obs, reward, terminated, truncated, _ = env.step(action)
        total, steps = total + float(reward), steps + 1
        if terminated or truncated:
            return total, steps


def _value(text: str) -> Any:
    """A number, a truth value and so on, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("env")
    parser.add_argument("options", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_intermixed_args()
    pairs = (word.split("=", 1) for word in words.options)
    options = {name: _value(text) for name, text in pairs}
    policy = load(words.folder, words.seed)
    env = gymnasium.make(words.env, **options)
    wanted = policy.about["observation"]["state"]["shape"][1:]
    if list(env.observation_space.shape or ()) != wanted:
        parser.error(
            f"{words.env} has observations of shape {env.observation_space.shape}, the "
            f"policy reads {wanted}; name the environment that it was trained for."
        )
    played = [play(policy, env, words.seed + i) for i in range(words.episodes)]
    returns, lengths = (np.array(x) for x in zip(*played))
    error = returns.std(ddof=1) / np.sqrt(len(returns)) if len(returns) > 1 else 0.0
    print(
        f"{len(returns)} episodes: return {returns.mean():.1f} +- {error:.1f} "
        f"(standard error), length {lengths.mean():.1f}"
    )


if __name__ == "__main__":
    main()
