"""Score an exported policy in an environment of Gymnasium, without dppo_jax.

    python -m experiments.deploy runs/hopper_fast/finetune hopper_policy
    python examples/run_in_gymnasium.py hopper_policy Hopper-v5 --episodes 40
    python examples/run_in_gymnasium.py hopper_policy Hopper-v5 --mass 1.2 --delay 1

It needs the folder that `experiments.deploy` wrote, JAX with flatbuffers, NumPy and
gymnasium[mujoco]. Keyword arguments of the environment follow as NAME=VALUE. The flags
change the simulation as `env.randomization` of dppo_jax does: factors of the model, a
delay in control steps, and noise in shares of half the range of the data.
"""

import argparse
import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np

# What each factor multiplies.
FACTORS = {
    "mass": ("body_mass", "body_inertia"),
    "friction": ("geom_friction", "pair_friction"),
    "damping": ("dof_damping",),
    "gain": ("actuator_gainprm", "actuator_biasprm"),
}


def load(folder: str, seed: int) -> Any:
    """The policy in the folder, by the loader that lies beside it."""
    path = Path(folder) / "exported_policy.py"
    spec = importlib.util.spec_from_file_location("exported_policy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ExportedPolicy(folder, seed=seed)


def change_model(model: Any, factors: dict[str, float]) -> None:
    """Multiply fields of a MuJoCo model, and derive its constants again."""
    for name, factor in factors.items():
        for field in FACTORS[name]:
            getattr(model, field)[...] *= factor
    mujoco.mj_setConst(model, mujoco.MjData(model))


def play(
    policy: Any,
    env: gymnasium.Env,
    seed: int,
    *,
    delay: int = 0,
    action_noise: float = 0.0,
    obs_noise: float = 0.0,
) -> tuple[float, int]:
    """Play one episode; its return and its length."""
    obs, _ = env.reset(seed=seed)
    policy.reset()
    bounds = {name: np.array(x) for name, x in policy.about["bounds"].items()}
    obs_unit, action_unit = (
        (bounds[f"{name}_max"] - bounds[f"{name}_min"]) / 2
        for name in ("obs", "action")
    )
    rng = np.random.default_rng(seed)
    waiting = [np.zeros(env.action_space.shape)] * delay
    total, steps = 0.0, 0
    while True:
        seen = obs + obs_noise * obs_unit * rng.normal(size=obs.shape)
        waiting.append(policy(seen))
        action = waiting.pop(0)
        action = action + action_noise * action_unit * rng.normal(size=action.shape)
        action = np.clip(action, env.action_space.low, env.action_space.high)
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
    for name, fields in FACTORS.items():
        about = f"a factor of {' and '.join(fields)} (default: 1)"
        parser.add_argument(f"--{name}", type=float, default=1.0, help=about)
    parser.add_argument("--delay", type=int, default=0, help="control steps")
    parser.add_argument("--action-noise", type=float, default=0.0)
    parser.add_argument("--obs-noise", type=float, default=0.0)
    parser.add_argument("--json", action="store_true", help="print JSON")
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
    factors = {name: getattr(words, name) for name in FACTORS}
    if any(factor != 1 for factor in factors.values()):
        change_model(env.unwrapped.model, factors)
    played = [
        play(
            policy,
            env,
            words.seed + i,
            delay=words.delay,
            action_noise=words.action_noise,
            obs_noise=words.obs_noise,
        )
        for i in range(words.episodes)
    ]
    returns, lengths = (np.array(x) for x in zip(*played))
    error = returns.std(ddof=1) / np.sqrt(len(returns)) if len(returns) > 1 else 0.0
    if words.json:
        means = {"episode_return": returns.mean(), "episode_length": lengths.mean()}
        print(json.dumps({**means, "episode_return_stderr": error}))
        return
    print(
        f"{len(returns)} episodes: return {returns.mean():.1f} +- {error:.1f} "
        f"(standard error), length {lengths.mean():.1f}"
    )


if __name__ == "__main__":
    main()
