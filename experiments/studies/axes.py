"""What an ablation varies: named axes, and the settings that follow each of them."""

import contextlib
import math
import shlex
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

from dppo_jax.errors import SettingsError
from dppo_jax.training.old_settings import flatten
from experiments.dry_run import executed
from experiments.settings import as_flag, override

# An axis: (configuration, value as on the command line) changes the configuration.
Change = Callable[[ConfigDict, str], None]


class Axis(NamedTuple):
    """One thing that an ablation varies.

    meaning: for a reader.
    setting: the name of what is varied.
    change: sets a value, and whatever has to follow it; None: only the setting.
    """

    meaning: str
    setting: str
    change: Change | None = None


def _tuned_steps(config: ConfigDict, text: str) -> None:
    """A minibatch stays the same share of the pairs, so updates stay as many."""
    with _same_share_of_pairs(config):
        override(config, [f"model.sampling.num_tuned_steps={text}"])


def _ddim_steps(config: ConfigDict, text: str) -> None:
    """All steps of DDIM are tuned if the chain has fewer than K' steps."""
    with _same_share_of_pairs(config):
        override(config, [f"model.sampling.ddim_steps={text}"])
        sampling = config.model.sampling
        if sampling.ddim_steps is not None:
            fewest = min(sampling.num_tuned_steps, sampling.ddim_steps)
            sampling.num_tuned_steps = fewest


def _std(config: ConfigDict, text: str) -> None:
    names = ("min_std", "min_log_prob_std")
    override(config, [f"model.sampling.{name}={text}" for name in names])


def _clip(config: ConfigDict, text: str) -> None:
    """The range of the first step keeps its ratio to that of the last one."""
    ppo = config.algorithm.ppo
    share = ppo.clip_base / ppo.clip_top
    override(config, [f"algorithm.ppo.clip_top={text}"])
    ppo.clip_base = share * ppo.clip_top


def _chunk(config: ConfigDict, text: str) -> None:
    """An iteration keeps its control steps, up to a part of a chunk."""
    steps = config.rollout.num_chunks * executed(config)
    with _same_share_of_pairs(config):
        override(config, [f"model.chunk={text}"])
        if config.model.chunk >= 1:
            config.rollout.num_chunks = math.ceil(steps / executed(config))


def _num_envs(config: ConfigDict, text: str) -> None:
    """An iteration has as many chunks per environment, and as many updates."""
    with _same_share_of_pairs(config):
        override(config, [f"rollout.num_envs={text}"])


def _action_noise(config: ConfigDict, text: str) -> None:
    """Noise begins after five iterations and rises in five, as in the paper."""
    override(config, [f"rollout.action_noise={text}"])
    if config.rollout.action_noise:
        config.rollout.update(action_noise_start=5, action_noise_ramp=5)


@contextlib.contextmanager
def _same_share_of_pairs(config: ConfigDict) -> Iterator[None]:
    """Let `algorithm.ppo.batch_size` follow the pairs that an iteration collects."""
    ppo = config.algorithm.ppo
    if config.algorithm.name != "ppo":
        raise SettingsError(
            f"algorithm.name={config.algorithm.name!r}: this axis also sets the "
            "minibatch of ppo; vary plain settings instead, such as "
            "--axis=rollout.num_envs=20,40."
        )
    share = ppo.batch_size / pairs(config)
    yield
    # A minibatch of chains holds all of their moves.
    unit = _moves(config) if ppo.minibatch == "chain" else 1
    ppo.batch_size = max(round(share * pairs(config) / unit), 1) * unit


def _moves(config: ConfigDict) -> int:
    """Tuned moves of a chain; 1 of a policy that is none."""
    chain = config.model.kind in ("diffusion", "flow")
    return max(config.model.sampling.num_tuned_steps, 1) if chain else 1


def pairs(config: ConfigDict) -> int:
    """Pairs of a chunk and a tuned step that an iteration collects."""
    rollout = config.rollout
    return max(rollout.num_envs * rollout.num_chunks * _moves(config), 1)


AXES = {
    "tuned_steps": Axis(
        "K', the denoising steps that are tuned",
        "model.sampling.num_tuned_steps",
        _tuned_steps,
    ),
    "min_std": Axis(
        "floor of the standard deviation in sampling", "model.sampling.min_std"
    ),
    "min_log_prob_std": Axis(
        "floor of it in log-probabilities", "model.sampling.min_log_prob_std"
    ),
    "std": Axis("both floors together", "model.sampling.min_std", _std),
    "denoising_discount": Axis(
        "denoising discount", "algorithm.ppo.denoising_discount"
    ),
    "clip": Axis(
        "clip range of the last denoising step, and of the others",
        "algorithm.ppo.clip_top",
        _clip,
    ),
    "clip_base": Axis(
        "clip range of the first denoising step", "algorithm.ppo.clip_base"
    ),
    "chunk": Axis("actions of a chunk", "model.chunk", _chunk),
    "num_envs": Axis("environments that run at once", "rollout.num_envs", _num_envs),
    "ddim_steps": Axis(
        "steps of DDIM; None: DDPM", "model.sampling.ddim_steps", _ddim_steps
    ),
    "num_demonstrations": Axis(
        "demonstrations to clone from; None: all", "pretrain.num_episodes"
    ),
    "action_noise": Axis(
        "standard deviation of noise on actions, in training alone",
        "rollout.action_noise",
        _action_noise,
    ),
    "initial_state": Axis(
        "noise on the initial state, in training and evaluation",
        "env.randomization.initial_state",
    ),
}


def find_axis(name: str) -> Axis:
    """The axis of this name; a name with a dot is a setting.

    Raises:
        SettingsError: neither.
    """
    if name in AXES:
        return AXES[name]
    if "." in name:
        return Axis(f"the setting {name}", name)
    raise SettingsError(
        f"--axis={name} is unknown; use {', '.join(AXES)}, or a setting such as "
        "algorithm.ppo.epochs."
    )


def value_of(config: ConfigDict, name: str) -> str:
    """What a configuration has on an axis, as on the command line.

    Raises:
        SettingsError: no such axis.
    """
    # An option of a task may have no value yet.
    return str(flatten(config.to_dict()).get(find_axis(name).setting, "unset"))


def settings_for(config: ConfigDict, name: str, text: str) -> dict[str, str]:
    """The settings that a value of an axis changes: their names, and their values.

    Args:
        config: what it changes, which stays as it is.
        text: the value as on the command line.

    Raises:
        SettingsError: no such axis, or a wrong value.
    """
    changed = config.copy_and_resolve_references().lock()
    changed.env.options.unlock()
    changed.model.network.options.unlock()
    try:
        axis = find_axis(name)
        if axis.change is None:
            override(changed, [f"{axis.setting}={text}"])
        else:
            axis.change(changed, text)
    except SettingsError as error:
        raise SettingsError(f"--axis={name}={text}: {error}") from None
    before, after = (flatten(x.to_dict()) for x in (config, changed))
    return {
        key: shlex.split(as_flag(key, value))[0].partition("=")[2]
        for key, value in after.items()
        if key not in before or before[key] != value
    }
