"""Settings that Hopper, Walker2d and HalfCheetah share; their own files name the task.

They are the settings of the reference implementation for D4RL's medium data sets
(paper Sec. 5.1 and appendix). Two of its releases differ in cloning:

- `v0_8`, the default: 200 epochs, weights averaged every 10 updates;
- `v0_6`: 3000 epochs, weights averaged every 5 epochs from the tenth on.

The other variants are:

- `cpu`: about an hour on two CPU cores, for data sets of 100,000 steps;
- `fast`: `v0_8` with iterations that take an eighth of the time and improve the policy
  about as much (docs/performance.md);
- `fast_ddim`: the policy of `fast`, which acts and is tuned in five steps of DDIM;
- `fast_randomized`: `fast` with other masses, friction, damping, gains, delays and
  noise in every episode (docs/results/robustness.md);
- `fast_exact`: the policy and the schedule of `fast`, tuned as in `exact`;
- `fast_gaussian` and `fast_gmm`: a Gaussian and a mixture of five Gaussians, cloned
  from the same data and tuned on the schedule of `fast`;
- `exact`: PPO with the exact likelihood of actions (paper App. B.5) instead of DPPO;
- `flow`: a flow policy of four steps, with ReinFlow's settings (arXiv 2505.22094) on
  the schedule of `fast`; `flow1` and `flow2` have one and two steps. They share a
  cloned policy, because a flow can be cloned for any number of steps;
- `fpo`: the same with FPO++ (arXiv 2602.02481) instead of PPO, for a flow of ten steps;
- `drwr`, `dawr` and `dsrl`: regression with weights of returns or advantages (paper
  App.), and steering by noise (arXiv 2506.15799), of a policy that `cpu` cloned;
- `fastest`: `fast` with a fifth of its time per iteration and fewer evaluations, the
  shortest way to a return of 3000 on Hopper (docs/performance.md);
- `idql`, `dql`, `qsm`, `dipo`: these off-policy algorithms instead of DPPO (arXiv
  2304.10573, 2208.06193, 2312.11752, 2305.13122), with the networks of `cpu` and sizes
  for two CPU cores;
- `ogpo`: OGPO (arXiv 2605.03065) on the policy of `v0_8`, with chains of five steps of
  DDIM and sizes for two CPU cores;
- `sac`: soft actor-critic with new networks and without data (docs/results/sac.md);
- `gaussian`: PPO of a Gaussian policy with new networks and without data, as in release
  0.8 (501 iterations for HalfCheetah);
- `gmm`: the same for a mixture of five Gaussians, for which the reference has no
  settings. Its standard deviations are learned and start at 0.1, as those of
  `gaussian` do;
- `rlpd` and `calql`: new networks, trained from demonstrations and roll-outs by RLPD
  (arXiv 2302.02948) and Cal-QL (arXiv 2303.05479), meant for minutes on two CPU cores;
- `ibrl`: a cloned Gaussian policy, fine-tuned by IBRL (arXiv 2311.02198), likewise.

Use demonstrations of D4RL or of `experiments.collect`, which trains a policy to about
a third or a half of the returns of D4RL's experts (3234, 4592 and 12135).
"""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from dppo_jax.diffusion.flow import LEAST_STD
from dppo_jax.envs.tasks.locomotion import MAX_STEPS
from dppo_jax.errors import SettingsError
from experiments.configs import locomotion_others as others
from experiments.configs.randomized import use_randomization
from experiments.defaults import default_config, demonstrator_config

OFF_POLICY = ("idql", "dql", "qsm", "dipo")
# A medium data set holds a million windows, a minibatch 128 of them.
_UPDATES_PER_EPOCH = 7800
# Per task: the return at which the demonstrator's training stops; the number of motors.
_TARGETS = {"hopper": 1500.0, "walker2d": 2000.0, "halfcheetah": 3500.0}
_MOTORS = {"hopper": 3, "walker2d": 6, "halfcheetah": 6}
# Exploring returns from which on `fastest` evaluates, where they are known.
_GOOD_RETURNS = {"hopper": 1700.0}


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
    # Log-probabilities are means over the motors, so the usual 0.2 is divided by them.
    clip = 0.2 / _MOTORS[task]
    config.collect.ppo.clip_top = config.collect.ppo.clip_base = clip

    config.loop.pretrain.num_epochs = config.pretrain.cycle_epochs = 200

    config.loop.finetune.num_iterations = 1000
    config.rollout.num_envs = 40
    config.rollout.num_chunks = 500  # two episodes of full length
    # With resets, iterations would see the beginnings of episodes too often.
    config.rollout.reset_at_iteration = False
    ppo = config.algorithm.ppo
    ppo.batch_size = 50_000  # a quarter of the 40 x 500 x 10 pairs
    ppo.clip_top = ppo.clip_base = 0.01
    ppo.target_kl = 1.0
    VARIANTS[variant](config, task)
    return config


def _use_release_0_6(config: ConfigDict) -> None:
    """Clone for longer, and average weights less often."""
    config.loop.pretrain.num_epochs = config.pretrain.cycle_epochs = 3000
    config.pretrain.ema_start = 10
    config.pretrain.ema_every = 5 * _UPDATES_PER_EPOCH


def _hasten(config: ConfigDict) -> None:
    """Make as many updates per iteration, 20, with a quarter of the steps."""
    # How much an iteration improves the policy hardly depends on its number of steps,
    # and after a shorter iteration a better policy collects the next steps.
    config.rollout.num_chunks = 125
    ppo = config.algorithm.ppo
    # The gradient of a tenth of the pairs has nearly the same direction, and Adam's
    # steps have the same length.
    ppo.batch_size = 5000
    # With fewer epochs the policy stays closer to the one that collected the data.
    ppo.epochs = 2
    # The critic is then evaluated once for all moves of a chain.
    ppo.minibatch = "chain"
    # Iterations take two seconds; an evaluation takes as long as three of them.
    config.loop.finetune.evaluate_every = 6


def _use_fast_randomized(config: ConfigDict) -> None:
    _hasten(config)
    use_randomization(config)


def _use_fast_ddim(config: ConfigDict) -> None:
    _hasten(config)
    config.model.sampling.update(ddim_steps=5, num_tuned_steps=5)
    config.algorithm.ppo.batch_size = 500 * 5  # as many environment steps as in `fast`


def _use_fast_likelihood(config: ConfigDict) -> None:
    _hasten(config)
    _use_likelihood(config)
    config.algorithm.ppo_exact.batch_size = 500  # twenty updates, as in `fast`
    config.algorithm.ppo_exact.epochs = 2


def _use_fast_head(config: ConfigDict, head: str) -> None:
    """Clone and tune a policy that is no chain, with the exploration of `fast`.

    The reference clones such policies of single actions from these data, and has no
    settings to tune them. The network is that of the diffusion policy.
    """
    _hasten(config)
    config.model.kind = head
    config.model.sampling.num_tuned_steps = 1
    ppo = config.algorithm.ppo
    ppo.batch_size = 500  # chunks; as many environment steps as in `fast`
    if head == "gmm":
        # Its log-probability is the joint one of a chunk, a sum over 4 actions of all
        # motors. The others are means over them.
        ppo.clip_top = ppo.clip_base = 0.1


def _use_likelihood(config: ConfigDict) -> None:
    """The reference's settings (`cfg/gym/finetune/*/ft_ppo_exact_diffusion_mlp.yaml`).

    Its defaults are those of `algorithms/ppo_exact.py`.
    """
    config.algorithm.name = "ppo_exact"
    config.algorithm.ppo_exact.batch_size = 5000  # a quarter of the 40 x 500 chunks
    config.algorithm.ppo_exact.target_kl = 1.0


def _use_flow(config: ConfigDict, task: str, *, num_steps: int) -> None:
    """ReinFlow's settings, with the iterations of `fast`.

    They are those of `cfg/gym/finetune/*/ft_ppo_reflow_mlp.yaml` of its code. Left out:
    std_max is not lowered as training goes on (`learn_decay` there), and chain
    log-probabilities are not clamped.

    Args:
        num_steps: K, all of which are tuned.
    """
    _hasten(config)
    _make_flow(config, num_steps=num_steps)
    config.model.noise.update(std_min=0.10, std_max=0.24)
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


def _make_flow(config: ConfigDict, *, num_steps: int) -> None:
    model = config.model
    model.kind = "flow"
    model.sampling.update(flow_steps=num_steps, num_tuned_steps=num_steps)
    model.sampling.final_clip = 1.0
    # Its velocity is learnt in a fifth of the epochs that a diffusion policy gets.
    config.loop.pretrain.num_epochs = config.pretrain.cycle_epochs = 40


def _use_fastest(config: ConfigDict, task: str) -> None:
    """Halve the roll-outs and the tuned steps of `fast`, and double its rates."""
    _hasten(config)
    # Half of the steps of `fast`; an iteration still improves the policy as much.
    config.rollout.num_chunks = 64
    # Gradients of five denoising steps cost half of those of ten. The first ones shape
    # the actions less, and the frozen policy is good at them.
    config.model.sampling.num_tuned_steps = 5
    ppo = config.algorithm.ppo
    ppo.batch_size = 256 * 5  # twenty updates per iteration, as in `fast`
    # Fewer tuned steps must change the action more. Ratios follow, so the clip range
    # doubles too.
    ppo.actor.learning_rate = ppo.actor.min_learning_rate = 2e-4
    ppo.clip_top = ppo.clip_base = 0.02
    # An evaluation takes as long as several iterations, so there is none before the
    # exploring policy has become clearly better; the deterministic one may then have
    # twice its return.
    if task in _GOOD_RETURNS:
        config.loop.finetune.evaluate_from_return = _GOOD_RETURNS[task]
        config.loop.finetune.evaluate_every = 4
    config.evaluate.num_episodes = config.evaluate.num_envs = 100


def _use_fpo(config: ConfigDict) -> None:
    """FPO++ with the iterations of `fast`.

    Neither paper has settings for this task. These are a first guess: FPO++'s for
    fine-tuning cloned policies where it has such, and else the defaults.
    """
    _hasten(config)
    _make_flow(config, num_steps=10)
    # The noise of the start alone explores.
    config.model.noise.update(std_min=LEAST_STD, std_max=LEAST_STD)
    config.algorithm.name = "fpo"
    fpo = config.algorithm.fpo
    fpo.batch_size = 500  # chunks; twenty updates, as in `fast`
    fpo.epochs = 2
    fpo.num_pairs = 8
    fpo.clip = 0.02
    for settings, rate in ((fpo.actor, 1e-5), (fpo.critic, 1e-3)):
        settings.update(learning_rate=rate, min_learning_rate=rate)
    fpo.actor.max_grad_norm = 5.0


def _start_from_nothing(config: ConfigDict, task: str, head: str) -> None:
    """Train new networks on single actions, from few environments."""
    config.loop.finetune.num_iterations = 501 if task == "halfcheetah" else 301
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


# What each variant changes, given the configuration of `v0_8` and the task.
VARIANTS: dict[str, Callable[[ConfigDict, str], None]] = {
    "v0_8": lambda config, task: None,
    "v0_6": lambda config, task: _use_release_0_6(config),
    "cpu": lambda config, task: others.shrink(config),
    "fast": lambda config, task: _hasten(config),
    "fast_randomized": lambda config, task: _use_fast_randomized(config),
    "fast_ddim": lambda config, task: _use_fast_ddim(config),
    "fast_exact": lambda config, task: _use_fast_likelihood(config),
    "fast_gaussian": lambda config, task: _use_fast_head(config, "gaussian"),
    "fast_gmm": lambda config, task: _use_fast_head(config, "gmm"),
    "exact": lambda config, task: _use_likelihood(config),
    "flow1": lambda config, task: _use_flow(config, task, num_steps=1),
    "flow2": lambda config, task: _use_flow(config, task, num_steps=2),
    "flow": lambda config, task: _use_flow(config, task, num_steps=4),
    "fpo": lambda config, task: _use_fpo(config),
    "fastest": _use_fastest,
    "sac": lambda config, task: others.use_sac(config),
    "idql": lambda config, task: others.use_off_policy(config, "idql"),
    "dql": lambda config, task: others.use_off_policy(config, "dql"),
    "qsm": lambda config, task: others.use_off_policy(config, "qsm"),
    "dipo": lambda config, task: others.use_off_policy(config, "dipo"),
    "ogpo": lambda config, task: others.use_ogpo(config),
    "drwr": lambda config, task: others.use_regression(config, "drwr"),
    "dawr": lambda config, task: others.use_regression(config, "dawr"),
    "dsrl": lambda config, task: others.use_steering(config, task),
    "rlpd": lambda config, task: others.use_demonstrations(config, "rlpd"),
    "calql": lambda config, task: others.use_demonstrations(config, "calql"),
    "ibrl": lambda config, task: others.use_demonstrations(config, "ibrl"),
    "gaussian": lambda config, task: _start_from_nothing(config, task, "gaussian"),
    "gmm": lambda config, task: _start_from_nothing(config, task, "gmm"),
}
