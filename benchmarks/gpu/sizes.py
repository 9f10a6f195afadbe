"""Sizes of the measurements, and the configurations at these sizes."""

from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from benchmarks.setups import set_compute_dtype
from dppo_jax.envs.physics import resolve_engine
from experiments.settings import load_config

TABLES = (
    *("end_to_end", "time_to_target", "seeds"),
    *("denoising", "update", "pretrain", "matmul"),
)
ENGINES = ("mjx", "mjx-warp")
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
# Variants with minibatches of chains; `avoid` has minibatches of pairs.
CONFIGS = {
    "hopper": "experiments/configs/hopper.py:fast",
    "halfcheetah": "experiments/configs/halfcheetah.py:fast",
    "avoid": "experiments/configs/avoid.py:m1",
}


class Sizes(NamedTuple):
    """Sizes of the measurements.

    tasks: tasks of `end_to_end`; the parts use the first one.
    batches: numbers of environments, the most important first.
    widths: widths of square products.
    seeds: numbers of seeds side by side.
    updates: minibatches in an epoch of cloning.
    chunks: chunks of every environment in an iteration.
    hidden: layer sizes of all networks; None: those of the configurations.
    seconds: time in which a measurement is repeated.
    targets: tasks of `time_to_target`.
    target_settings: changed settings of these tasks.
    target_seconds: time after which fine-tuning gives up.
    """

    tasks: tuple[str, ...]
    batches: tuple[int, ...]
    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    updates: int
    chunks: int
    hidden: tuple[int, ...] | None
    seconds: float
    targets: tuple[str, ...]
    target_settings: dict[str, dict[str, Any]]
    target_seconds: float


FULL = Sizes(
    tasks=("hopper", "halfcheetah"),
    batches=(4096, 1024),
    widths=(512, 8192),
    seeds=(1, 16),
    updates=500,
    chunks=16,
    hidden=None,
    seconds=3.0,
    targets=("avoid", "hopper"),
    # A GPU steps 512 environments as fast as 40. Compared with `:fast` an iteration has
    # five times the chunks, two fifths of the steps per environment, as many updates.
    target_settings={
        "hopper": {
            "rollout.num_envs": 512,
            "rollout.num_chunks": 50,
            "algorithm.ppo.batch_size": 25_600,
            "loop.pretrain.num_epochs": 30,
            "pretrain.cycle_epochs": 30,
        },
        "avoid": {},
    },
    target_seconds=240.0,
)
SMALL = Sizes(
    tasks=("avoid",),
    batches=(8,),
    widths=(64,),
    seeds=(2,),
    updates=2,
    chunks=5,
    hidden=(16, 16, 16),
    seconds=0.3,
    targets=("avoid",),
    target_settings={
        "avoid": {
            "collect.episodes_per_mode": 1,
            "evaluate.num_episodes": 4,
            "evaluate.num_envs": 4,
            "loop.finetune.num_iterations": 2,
            "rollout.num_envs": 4,
            "rollout.num_chunks": 5,
            "algorithm.ppo.batch_size": 100,
            "loop.pretrain.num_epochs": 2,
        }
    },
    target_seconds=5.0,
)


def make_config(
    task: str,
    sizes: Sizes,
    *,
    envs: int = 8,
    engine: str = "mjx",
    precision: str = "float32",
) -> ConfigDict:
    """The configuration of a task, at the sizes to measure: 2 epochs of 10 updates.

    Raises:
        SettingsError: an engine that cannot run here.
    """
    config = load_config(CONFIGS[task])
    if precision == "bfloat16":
        set_compute_dtype(config, precision)
    config.env.engine = resolve_engine(engine, engine)
    config.rollout.update(num_envs=envs, num_chunks=sizes.chunks)
    config.algorithm.ppo.epochs = 2
    steps = max(1, envs * sizes.chunks // 10)
    config.algorithm.ppo.batch_size = steps * config.model.sampling.num_tuned_steps
    shrink(config, sizes)
    return config


def shrink(config: ConfigDict, sizes: Sizes) -> None:
    if sizes.hidden is not None:
        config.model.network.hidden_sizes = sizes.hidden
        config.critic.hidden_sizes = sizes.hidden


def products_in(precision: str) -> Any:
    """A context for compiling, which sets the precision of float32 products."""
    tf32 = precision == "tensorfloat32"
    return jax.default_matmul_precision(precision if tf32 else "float32")
