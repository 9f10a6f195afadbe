"""Settings of the off-policy iteration, and what they must satisfy."""

from ml_collections import ConfigDict

from dppo_jax import replay as buffers
from dppo_jax.errors import SettingsError
from dppo_jax.types import VecEnv


def default_config() -> ConfigDict:
    """Settings of buffer and updates, which are keyword arguments of `off_policy`."""
    config = ConfigDict()
    config.capacity = 1_000_000  # transitions that the buffer holds
    config.batch_size = 256  # transitions of one update
    config.random_steps = 5000  # transitions under random actions at the start
    config.min_fill = 5000  # transitions before the first update
    config.updates_per_transition = 1.0  # the update-to-data ratio
    config.updates_per_round = 1  # batches of a round of updates
    config.num_groups = 1  # of environments; a multiple of the number of devices
    config.in_checkpoints = True  # False: a resumed run fills its buffer anew
    return config


def check_settings(
    env: VecEnv,
    *,
    num_chunks: int,
    reset_at_iteration: bool,
    capacity: int,
    batch_size: int,
    min_fill: int,
    num_groups: int,
) -> None:
    """Raise SettingsError for settings that `off_policy` cannot work with."""
    if len(env.action_shape) != 2:
        raise SettingsError(
            f"the environment takes actions of shape {env.action_shape}, but off_policy"
            " needs chunks [Ta, Da]; wrap it in chunk_actions(env, Ta), with Ta = 1 for"
            " single actions."
        )
    if batch_size < 1:
        raise SettingsError(f"replay.batch_size={batch_size} must be at least 1.")
    if num_groups < 1 or batch_size % num_groups or env.num_envs % num_groups:
        raise SettingsError(
            f"replay.num_groups={num_groups} must divide replay.batch_size={batch_size}"
            f" and the {env.num_envs} environments; change one of them."
        )
    buffers.check_capacity(capacity, num_envs=env.num_envs)
    if batch_size > capacity:
        raise SettingsError(
            f"replay.batch_size={batch_size} must not be above replay.capacity="
            f"{capacity}; change one of them."
        )
    if min_fill > capacity:
        raise SettingsError(
            f"replay.min_fill={min_fill} must not be above replay.capacity={capacity}; "
            "change one of them."
        )
    if reset_at_iteration and env.max_steps is not None and num_chunks < env.max_steps:
        raise SettingsError(
            f"rollout.reset_at_iteration=True with num_chunks={num_chunks} stops every "
            f"episode before its time limit of {env.max_steps} chunks; set it to False,"
            f" or num_chunks to at least {env.max_steps}."
        )


def num_rounds(
    num_transitions: int, updates_per_transition: float, updates_per_round: int
) -> int:
    """How often `Learner.update` is called in an iteration.

    Args:
        num_transitions: that an iteration collects.
        updates_per_transition, updates_per_round: as in `off_policy`.

    Raises:
        SettingsError: it is no whole number, or none.
    """
    rounds = updates_per_transition * num_transitions / max(updates_per_round, 1)
    if updates_per_round < 1 or rounds < 1 or abs(rounds - round(rounds)) > 1e-6:
        raise SettingsError(
            f"replay.updates_per_transition={updates_per_transition} for the "
            f"{num_transitions} transitions of an iteration must be a whole number of "
            f"rounds of updates_per_round={updates_per_round}, at least one; change "
            "one of them, or collect more."
        )
    return round(rounds)
