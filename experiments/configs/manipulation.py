"""Settings that Lift, Can, Square and Transport share; their own files name the task.

`paper`, the default, has the settings of the reference implementation for state
policies (v0.8, and the paper's appendix), with scripted demonstrations in the place of
its 300 human ones. An iteration is four episodes in each of 50 environments, 60,000
environment steps for Lift and Can, 80,000 for Square and 160,000 for Transport.

`fast` is for two CPU cores: an iteration takes a quarter of the steps and a fifth of
the updates.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from dppo_jax.envs.tasks import can, lift, square, transport
from dppo_jax.errors import SettingsError
from experiments.defaults import default_config

VARIANTS = ("paper", "fast")


class _Task(NamedTuple):
    """What differs between the tasks in the reference implementation.

    max_steps: of an episode.
    num_iterations: of fine-tuning.
    width: of the policy's three hidden layers.
    chunk: actions of a chunk.
    epochs: of the updates of an iteration.
    """

    max_steps: int
    num_iterations: int
    width: int
    chunk: int = 4
    epochs: int = 10


_TASKS = {
    "lift": _Task(lift.MAX_STEPS, 81, 512),
    "can": _Task(can.MAX_STEPS, 151, 512),
    "square": _Task(square.MAX_STEPS, 201, 1024),
    "transport": _Task(transport.MAX_STEPS, 201, 1024, chunk=8, epochs=5),
}


def make_config(task: str, variant: str) -> ConfigDict:
    """The configuration of a task in one of `VARIANTS`."""
    if variant not in VARIANTS:
        raise SettingsError(
            f"{task}.py:{variant} is unknown; use one of {', '.join(VARIANTS)}."
        )
    own = _TASKS[task]
    config = default_config()
    config.name = task if variant == "paper" else f"{task}_{variant}"
    config.env.task = task
    config.env.max_steps = own.max_steps

    config.collect.num_episodes = 300  # as many as the human data sets have
    config.collect.noise = 0.1
    config.collect.success_only = True
    config.collect.steps_after_success = 20

    config.model.chunk = own.chunk
    network = config.model.network
    network.hidden_sizes = (own.width,) * 3
    network.activation = "mish"
    if own.width == 1024:
        network.time_dim = 32
    if task == "square":
        network.condition_sizes = (512, 64)

    config.loop.pretrain.num_epochs = config.pretrain.cycle_epochs = 3000
    config.pretrain.batch_size = 256
    config.pretrain.learning_rate = 1e-4
    config.pretrain.min_learning_rate = 1e-5
    config.pretrain.warmup_epochs = 100

    config.loop.finetune.num_iterations = own.num_iterations
    config.rollout.num_envs = 50
    config.rollout.num_chunks = num_chunks = 4 * own.max_steps // own.chunk
    ppo = config.algorithm.ppo
    # The reward is 1 for every step in which the task is solved, so it comes late.
    ppo.discount = 0.999
    ppo.batch_size = 50 * num_chunks // 2  # a twentieth of the pairs
    ppo.epochs = own.epochs
    ppo.target_kl = 1.0
    ppo.critic_warmup = 2
    for settings in (ppo.actor, ppo.critic):
        settings.cycle_steps = own.num_iterations
    config.evaluate.num_episodes = config.evaluate.num_envs = 100
    if variant == "fast":
        _hasten(config)
    return config


def _hasten(config: ConfigDict) -> None:
    """Shorten all stages for two CPU cores."""
    # An episode ends at its first success. With a success of 0.7 this saves a third of
    # the steps, those in which a solved task stays solved.
    config.env.options.end_on_success = True
    # A third of the data, cloned for less long, leaves more for fine-tuning to improve.
    config.collect.num_episodes = 100
    # An update takes a quarter of the time of the paper's networks or less.
    config.model.network.hidden_sizes = (256, 256, 256)
    # Ten thousand updates in place of half a million, at a higher learning rate.
    config.loop.pretrain.num_epochs = config.pretrain.cycle_epochs = 150
    config.pretrain.learning_rate = 1e-3
    config.pretrain.min_learning_rate = 1e-4
    config.pretrain.warmup_epochs = 5
    # Twice as many environments for fewer chunks, so that the policy which collects is
    # never old. Episodes go on in the next iteration.
    config.rollout.num_envs = 100
    config.rollout.num_chunks = num_chunks = 40
    config.rollout.reset_at_iteration = False
    config.loop.finetune.num_iterations = 100
    # Gradients of five denoising steps cost half of those of ten.
    config.model.sampling.num_tuned_steps = num_tuned = 5
    ppo = config.algorithm.ppo
    # The critic and the encoder then run once for all moves of a chain.
    ppo.minibatch = "chain"
    ppo.batch_size = 100 * num_chunks * num_tuned // 10
    # Forty updates. With ten or twenty an iteration improves the policy less, with
    # eighty no more.
    ppo.epochs = 4
    # Ratios are means over the 28 entries of a chunk. At the paper's 0.001 for the
    # first denoising steps, most are clipped before the policy changes.
    ppo.clip_top = ppo.clip_base = 0.02
    # A success comes after about 30 chunks; sooner is better.
    ppo.discount = 0.99
    # The policy is far from converged, so the critic may follow at once.
    ppo.critic_warmup = 1
    for settings in (ppo.actor, ppo.critic):
        settings.cycle_steps = 100
    config.loop.finetune.evaluate_every = 10
