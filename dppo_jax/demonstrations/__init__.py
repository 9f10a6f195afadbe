"""Data sets of demonstrations: formats, recorder, windows and transitions."""

from dppo_jax.demonstrations.dataset import (
    Episodes,
    Windows,
    concatenate,
    gather,
    normalize_episodes,
    select_episodes,
    split_episodes,
    summary,
    unnormalize_episodes,
    windows,
)
from dppo_jax.demonstrations.formats import (
    FORMATS,
    detect_format,
    load_demonstrations,
    save_demonstrations,
)
from dppo_jax.demonstrations.formats.d4rl import load_d4rl, save_d4rl
from dppo_jax.demonstrations.formats.dppo_npz import load_dppo_npz, save_dppo_npz
from dppo_jax.demonstrations.formats.lerobot import load_lerobot
from dppo_jax.demonstrations.formats.minari import load_minari, save_minari
from dppo_jax.demonstrations.formats.robomimic import load_robomimic
from dppo_jax.demonstrations.recorder import (
    in_task_units,
    make_recorder,
    random_bounds,
)
from dppo_jax.demonstrations.transitions import (
    Transitions,
    chunked_transitions,
    transitions_of,
)

__all__ = [
    "FORMATS",
    "Episodes",
    "Transitions",
    "Windows",
    "chunked_transitions",
    "concatenate",
    "detect_format",
    "in_task_units",
    "gather",
    "load_d4rl",
    "load_demonstrations",
    "load_dppo_npz",
    "load_lerobot",
    "load_minari",
    "load_robomimic",
    "make_recorder",
    "normalize_episodes",
    "random_bounds",
    "save_d4rl",
    "save_demonstrations",
    "save_dppo_npz",
    "save_minari",
    "select_episodes",
    "split_episodes",
    "summary",
    "transitions_of",
    "unnormalize_episodes",
    "windows",
]
