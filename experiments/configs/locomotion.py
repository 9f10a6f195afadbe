"""What Hopper, Walker2d and HalfCheetah share; their own files name the task.

The settings are those of the reference implementation for D4RL's medium data sets
(paper Sec. 5.1 and appendix), of which two releases differ:

- `v0_8`, the default: 200 epochs of cloning, weights averaged every 10 updates;
- `v0_6`: 3000 epochs, weights averaged every 5 epochs from the tenth on. Fine-tuning
  is the same in both;
- `cpu`: the same job in about an hour on two CPU cores, for data sets of 100,000 steps;
- `fast`: `v0_8` with iterations that cost an eighth as much and teach about as much
  (docs/performance.md);
- `sac`: soft actor-critic from nothing, without data or a policy to start from
  (docs/results/sac.md);
- `gaussian`: PPO of a Gaussian policy from nothing, as release 0.8 does (HalfCheetah
  for 501 iterations);
- `gmm`: the same with a mixture of five Gaussians, for which the reference has no
  settings. The standard deviations are learnt from 0.1 on, which is also where those
  of `gaussian` start.

Demonstrations may be D4RL's, or those of `experiments.collect`, which trains a policy
up to a third or a half of the returns of D4RL's experts (3234, 4592 and 12135).
"""

from ml_collections import ConfigDict

from dppo_jax.envs.tasks.locomotion import MAX_STEPS
from dppo_jax.errors import SettingsError
from experiments.defaults import default_config, demonstrator_config

VARIANTS = ("v0_8", "v0_6", "cpu", "fast", "sac", "gaussian", "gmm")
# A medium data set holds a million windows, a minibatch 128 of them.
_UPDATES_PER_EPOCH = 7800
# Per task: where the demonstrator's training stops, and its number of motors.
_TARGETS = {"hopper": 1500.0, "walker2d": 2000.0, "halfcheetah": 3500.0}
_MOTORS = {"hopper": 3, "walker2d": 6, "halfcheetah": 6}


def make_config(task: str, variant: str) -> ConfigDict:
    """The configuration of a task in one of `VARIANTS`."""
    if variant not in VARIANTS:
        raise SettingsError(
            f"{task}.py:{variant} is unknown; use one of {', '.join(VARIANTS)}."
        )
    config = default_config()
    config.name = task if variant == "v0_8" else f"{task}_{variant}"
    config.env.task = task
    config.env.max_steps = MAX_STEPS

    config.collect = demonstrator_config()
    config.collect.target_return = _TARGETS[task]
    config.collect.num_control_steps = 1_000_000  # as many as a medium data set has
    # Log-probabilities are means over the motors, so the usual 0.2 is shared out.
    clip = 0.2 / _MOTORS[task]
    config.collect.ppo.clip_top = config.collect.ppo.clip_base = clip

    config.loop.pretrain.num_epochs = config.pretrain.cycle_epochs = 200

    config.loop.finetune.num_iterations = 1000
    config.rollout.num_envs = 40
    config.rollout.num_chunks = 500  # two episodes of full length
    # Starting afresh would show the policy the beginnings of episodes too often.
    config.rollout.reset_at_iteration = False
    ppo = config.algorithm.ppo
    ppo.batch_size = 50_000  # a quarter of the 40 x 500 x 10 pairs
    ppo.clip_top = ppo.clip_base = 0.01
    ppo.target_kl = 1.0
    if variant == "v0_6":
        config.loop.pretrain.num_epochs = config.pretrain.cycle_epochs = 3000
        config.pretrain.ema_start = 10
        config.pretrain.ema_every = 5 * _UPDATES_PER_EPOCH
    elif variant == "cpu":
        _shrink(config)
    elif variant == "fast":
        _hasten(config)
    elif variant == "sac":
        _use_sac(config)
    elif variant in ("gaussian", "gmm"):
        _start_from_nothing(config, variant)
        iterations = 501 if task == "halfcheetah" else 301
        config.loop.finetune.num_iterations = iterations
    return config


def _hasten(config: ConfigDict) -> None:
    """As many updates per iteration, 20, on a quarter of the steps."""
    # What an iteration learns hardly depends on how many steps it is estimated from,
    # but the next ones are taken by a better policy.
    config.rollout.num_chunks = 125
    ppo = config.algorithm.ppo
    # A minibatch of a tenth of the pairs points nearly the same way; Adam's steps are
    # as long.
    ppo.batch_size = 5000
    # Fewer looks at each pair make the policy leave less of what it can trust.
    ppo.epochs = 2
    # The critic is evaluated once for all moves of an environment step.
    ppo.minibatch = "chain"
    # Iterations take two seconds; an evaluation takes as long as three of them.
    config.loop.finetune.evaluate_every = 6


def _shrink(config: ConfigDict) -> None:
    """A smaller network, and iterations of a fifth of the size."""
    config.collect.num_control_steps = 100_000
    config.model.network.hidden_sizes = (256, 256, 256)
    # Larger minibatches cost two cores hardly more, fewer epochs save the rest.
    config.loop.pretrain.num_epochs = config.pretrain.cycle_epochs = 100
    config.pretrain.batch_size = 512
    config.loop.finetune.num_iterations = 200
    config.rollout.num_chunks = 100
    ppo = config.algorithm.ppo
    ppo.batch_size = 10_000  # still a quarter of the pairs
    # The policy changes as often per iteration, on a fifth of the data.
    ppo.actor.cycle_steps = ppo.critic.cycle_steps = 200
    config.evaluate.num_episodes = config.evaluate.num_envs = 40


def _start_from_nothing(config: ConfigDict, head: str) -> None:
    """Single actions, few environments, many updates on small minibatches."""
    config.policy = "none"
    config.model.kind, config.model.chunk = head, 1
    config.model.network.update(hidden_sizes=(512, 512, 512), residual=False)
    config.model.gaussian.fixed_std = None  # predicted
    config.model.gmm.learn_fixed_std = True
    config.rollout.num_envs = 10
    config.rollout.num_chunks = 1000
    ppo = config.algorithm.ppo
    ppo.batch_size = 500
    ppo.epochs = 10
    ppo.clip_top = ppo.clip_base = 0.1


def _use_sac(config: ConfigDict) -> None:
    """Networks and rates of the SAC paper (arXiv 1812.05905), on new networks."""
    config.policy = "none"
    config.algorithm.name = "sac"
    config.model.kind, config.model.chunk = "squashed", 1
    for network in (config.model.network, config.critic):
        network.update(hidden_sizes=(256, 256), activation="relu", residual=False)
    # One update per transition follows the policy closely only if an iteration is
    # short: 256 transitions, a quarter of an episode of full length.
    config.rollout.num_envs = 8
    config.rollout.num_chunks = 32
    # Updates take nearly all of the time; half of the paper's batch halves it.
    config.algorithm.sac.replay.batch_size = 128
    loop = config.loop.finetune
    loop.num_iterations = 2000  # half a million control steps
    # An evaluation is ten episodes, as many steps as 40 iterations collect.
    config.evaluate.num_episodes = config.evaluate.num_envs = 10
    loop.log_every, loop.evaluate_every = 10, 40
    # Every checkpoint holds the replay buffer, 112 bytes for a transition of Hopper.
    loop.checkpoint_every = 100
