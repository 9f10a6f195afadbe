"""What Hopper, Walker2d and HalfCheetah share; their own files name the task.

The settings are those of the reference implementation for D4RL's medium data sets
(paper Sec. 5.1 and appendix), of which two releases differ:

- `v0_8`, the default: 200 epochs of cloning, weights averaged every 10 updates;
- `v0_6`: 3000 epochs, weights averaged every 5 epochs from the tenth on. Fine-tuning
  is the same in both;
- `cpu`: the same job in about an hour on two CPU cores, for data sets of 100,000 steps;
- `fast`: `v0_8` with iterations that cost an eighth as much and teach about as much
  (docs/performance.md);
- `flow`: a flow policy of four steps instead, with ReinFlow's settings (arXiv
  2505.22094) on the schedule of `fast`;
- `fastest`: a flow of two steps and a smaller network, for little time on a CPU;
- `sac`: soft actor-critic from nothing, without data or a policy to start from
  (docs/results/sac.md).

Demonstrations may be D4RL's, or those of `experiments.collect`, which trains a policy
up to a third or a half of the returns of D4RL's experts (3234, 4592 and 12135).
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from dppo_jax.envs.tasks.locomotion import MAX_STEPS
from dppo_jax.errors import SettingsError
from experiments.defaults import default_config, demonstrator_config

VARIANTS = ("v0_8", "v0_6", "cpu", "fast", "flow", "fastest", "sac")
# A medium data set holds a million windows, a minibatch 128 of them.
_UPDATES_PER_EPOCH = 7800
# Per task: where the demonstrator's training stops, and its number of motors.
_TARGETS = {"hopper": 1500.0, "walker2d": 2000.0, "halfcheetah": 3500.0}
_MOTORS = {"hopper": 3, "walker2d": 6, "halfcheetah": 6}


class _FlowRates(NamedTuple):
    """ReinFlow's learning rates of a task, each the highest and the lowest."""

    actor: tuple[float, float]
    critic: tuple[float, float]
    critic_decay: float
    critic_warmup: int


_FLOW_RATES = {
    "hopper": _FlowRates((4.5e-5, 2e-5), (6.5e-4, 3e-4), 1e-5, 0),
    "walker2d": _FlowRates((4e-4, 4e-4), (4e-3, 4e-3), 1e-5, 5),
    "halfcheetah": _FlowRates((3e-5, 1.5e-5), (3e-4, 1.5e-4), 1e-4, 10),
}


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
    elif variant == "flow":
        _use_flow(config, task, num_steps=4)
    elif variant == "fastest":
        _use_flow(config, task, num_steps=2)
        _hurry(config)
    elif variant == "sac":
        _use_sac(config)
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


def _use_flow(config: ConfigDict, task: str, *, num_steps: int) -> None:
    """ReinFlow's settings, with the iterations of `fast`.

    They are those of `cfg/gym/finetune/*/ft_ppo_reflow_mlp.yaml` of its code. Left out:
    std_max is not lowered as training goes on (`learn_decay` there), and chain
    log-probabilities are not clamped.

    Args:
        num_steps: K, all of which are tuned.
    """
    _hasten(config)
    model = config.model
    model.kind = "flow"
    model.sampling.update(flow_steps=num_steps, num_tuned_steps=num_steps)
    model.sampling.final_clip = 1.0
    model.noise.update(std_min=0.10, std_max=0.24)
    # Its velocity is learnt in a fifth of the epochs that a diffusion policy gets.
    config.loop.pretrain.num_epochs = config.pretrain.cycle_epochs = 40
    ppo = config.algorithm.ppo
    ppo.batch_size = 500 * num_steps  # as many environment steps as in `fast`
    ppo.ratio = "chain"
    ppo.denoising_discount = 1.0
    # 0.03 there, of an entropy that is a mean over the moves and the start, whose
    # entropy is constant; here it is a mean over the moves.
    ppo.entropy_coef = 0.03 * num_steps / (num_steps + 1)
    rates = _FLOW_RATES[task]
    ppo.critic_warmup = rates.critic_warmup
    for settings, (peak, floor) in (
        (ppo.actor, rates.actor),
        (ppo.critic, rates.critic),
    ):
        settings.update(learning_rate=peak, min_learning_rate=floor, cycle_steps=100)
    ppo.critic.weight_decay = rates.critic_decay


def _hurry(config: ConfigDict) -> None:
    """First guesses for the least time to a good policy; none has been tuned yet."""
    # With two steps and 512 units the networks would cost about a third of what the
    # simulator does (docs/performance.md); half of the width costs a quarter of that.
    config.model.network.hidden_sizes = (256, 256, 256)
    # Adam moves every weight equally far, so an output of half as many inputs moves
    # half as far: twice the rate makes up for it.
    for rate in ("learning_rate", "min_learning_rate"):
        config.algorithm.ppo.actor[rate] *= 2
    # The simulator is what is left, so iterations are short, and their 2000 chunks are
    # looked at as often as in ReinFlow: five times, in four minibatches.
    config.rollout.num_chunks = 50
    config.algorithm.ppo.epochs = 5
    # An evaluation simulates as many control steps as 25 iterations.
    config.loop.finetune.evaluate_every = 50


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
