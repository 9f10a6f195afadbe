"""Obstacle avoidance (D3IL) with the settings of the paper's appendix.

`avoid.py:m1`, `:m2` and `:m3` are the paper's three data sets: half of the episodes
pass the rewarded gap 5 of the third row, the other half gap 6, 7 or 8 respectively.
`avoid.py:demo` is m1, shortened to a few minutes on two CPU cores.

These variants have other policies or algorithms, and `m2` and `m3` have them too:

- `:m1_exact`: the same policy, fine-tuned by PPO with the exact likelihood of actions
  (paper App. B.5) instead of DPPO;
- `:m1_ddim`: the same policy, which acts and is tuned in five steps of DDIM;
- `:m1_flow`: a flow policy of four steps; `:m1_flow1` and `:m1_flow2` have one and two
  steps and share its cloned policy;
- `:m1_fpo`: the same flow in ten steps, fine-tuned by FPO++ (arXiv 2602.02481);
- `:m1_pixels`: the policy and the critic see the table from above, 96 x 96 pixels, by
  the vision transformer of the paper's pixel policies;
- `:m1_idql`, `:m1_dql`, `:m1_qsm`, `:m1_dipo`: the same policy, fine-tuned off-policy
  by these algorithms (arXiv 2304.10573, 2208.06193, 2312.11752, 2305.13122), with sizes
  for two CPU cores;
- `:m1_ogpo`: the same policy, fine-tuned by OGPO (arXiv 2605.03065);
- `:m1_drwr`, `:m1_dawr` and `:m1_dsrl`: the same policy, fine-tuned by regression with
  weights of returns or advantages (paper App.), or steered by its noise (arXiv
  2506.15799);
- `:m1_gaussian` and `:m1_gmm`: a Gaussian and a mixture of five Gaussians, with the
  settings of the reference implementation (v0.8);
- `:m1_rlpd` and `:m1_calql`: new networks, trained from the demonstrations and from
  roll-outs by RLPD (arXiv 2302.02948) and Cal-QL (arXiv 2303.05479);
- `:m1_ibrl`: the policy of `:m1_gaussian`, fine-tuned by IBRL (arXiv 2311.02198).
"""

import functools
from collections.abc import Callable

from ml_collections import ConfigDict

from dppo_jax.demonstrations.scripts.avoid import SUBSETS
from dppo_jax.diffusion.flow import LEAST_STD
from dppo_jax.errors import SettingsError
from experiments.configs.demonstrated import use_calql, use_ibrl, use_rlpd
from experiments.configs.short_ogpo import use_ogpo
from experiments.defaults import default_config

OFF_POLICY = ("idql", "dql", "qsm", "dipo")


def get_config(variant: str = "m1") -> ConfigDict:
    if variant not in VARIANTS:
        raise SettingsError(
            f"avoid.py:{variant} is unknown; use {', '.join(VARIANTS)}."
        )
    subset, _, kind = variant.partition("_")
    config = default_config()
    config.name = f"avoid_{variant}"
    config.env.task = "avoid"
    config.env.options = ConfigDict(dict(rewarded_gap=5))
    config.env.max_steps = 100
    # No episode ends before. With the value of the last observation after it, as in the
    # paper, V grows where no data are and drives the policy off the table
    # (docs/results/avoid.md). Other kinds were measured with that value.
    config.env.limit_terminates = kind not in _LIMIT_TRUNCATES

    config.collect.modes = SUBSETS.get(subset, SUBSETS["m1"])
    config.collect.episodes_per_mode = 4  # as many as the human subsets have

    # The data set is tiny (8 episodes), so there are many epochs of small batches.
    config.loop.pretrain.num_epochs = 5000
    config.pretrain.batch_size = 16
    config.pretrain.learning_rate = 1e-4
    config.pretrain.min_learning_rate = 1e-5
    config.pretrain.cycle_epochs = 5000
    config.pretrain.warmup_epochs = 100

    config.loop.finetune.num_iterations = 51
    config.rollout.num_envs = 50
    config.rollout.num_chunks = 25  # one episode of 100 control steps
    ppo = config.algorithm.ppo
    ppo.batch_size = 6250  # half of the 50 x 25 x 10 pairs
    ppo.epochs = 10
    ppo.clip_top = ppo.clip_base = 0.1
    ppo.clip_rate = 1.0
    ppo.denoising_discount = 0.95
    ppo.target_kl = 1.0
    ppo.critic_warmup = 1
    ppo.actor.learning_rate = 1e-5
    ppo.actor.min_learning_rate = 1e-5
    if variant == "demo":
        _shorten(config)
    if kind:
        _KINDS[kind](config)
    if variant == "m3_gmm":
        config.pretrain.batch_size = 32
    return config


def _use_flow(config: ConfigDict, *, num_steps: int) -> None:
    """A flow policy, fine-tuned as ReinFlow does (arXiv 2505.22094).

    ReinFlow has no settings for this task: what is set here is a first guess.
    """
    _make_flow(config, num_steps=num_steps)
    # Around the 0.1 with which a diffusion policy explores here.
    config.model.noise.update(std_min=0.08, std_max=0.14)
    ppo = config.algorithm.ppo
    ppo.minibatch = ppo.ratio = "chain"
    ppo.batch_size = 625 * num_steps  # half of the 50 x 25 chains
    ppo.denoising_discount = 1.0
    # A chain's log-ratio is a mean over its moves and its start, so what would be 0.1
    # for one move alone is 0.02 for a chain of four.
    ppo.clip_top = ppo.clip_base = 0.1 / (num_steps + 1)
    ppo.entropy_coef = 0.01


def _make_flow(config: ConfigDict, *, num_steps: int) -> None:
    model = config.model
    model.kind = "flow"
    model.sampling.update(flow_steps=num_steps, num_tuned_steps=num_steps)
    model.sampling.final_clip = 1.0


def _use_fpo(config: ConfigDict) -> None:
    """A flow policy, fine-tuned by FPO++; neither paper has settings for this task."""
    _make_flow(config, num_steps=10)
    # The noise of the start alone explores: which gap a chain takes depends on it.
    config.model.noise.update(std_min=LEAST_STD, std_max=LEAST_STD)
    config.algorithm.name = "fpo"
    fpo = config.algorithm.fpo
    fpo.batch_size = 625  # half of the 50 x 25 chunks
    fpo.epochs = 10
    fpo.critic_warmup = 1
    for settings, rate in ((fpo.actor, 1e-5), (fpo.critic, 1e-3)):
        settings.update(learning_rate=rate, min_learning_rate=rate)


def _use_likelihood(config: ConfigDict) -> None:
    """PPO with the exact likelihood; the reference has no settings for this task."""
    config.algorithm.name = "ppo_exact"
    exact = config.algorithm.ppo_exact
    exact.batch_size = 625  # half of the 50 x 25 chunks
    exact.epochs = 10
    exact.target_kl = 1.0
    exact.critic_warmup = 1


def _use_pixels(config: ConfigDict) -> None:
    """Read pictures; the paper has no pixel policy for this task.

    Sizes and shifts are those of its pixel policies for Can, and the schedule of the
    denoising is theirs too: 100 steps in cloning, 5 steps of DDIM in fine-tuning.
    """
    config.env.wrappers = ("dppo_jax.envs.tasks.avoid_camera:with_camera",)
    model = config.model
    model.network.encoder.kind = config.critic.encoder.kind = "vit"
    model.network.hidden_sizes = (512, 512, 512)
    model.diffusion.num_denoising_steps = 100
    model.sampling.update(ddim_steps=5, num_tuned_steps=5)
    config.pretrain.random_shift = config.algorithm.ppo.random_shift = 4
    # A picture of a window takes a hundred times as long as its state: fewer epochs, of
    # larger batches.
    config.loop.pretrain.num_epochs = config.pretrain.cycle_epochs = 300
    config.pretrain.warmup_epochs = 10
    config.pretrain.batch_size = 64
    ppo = config.algorithm.ppo
    # The encoder then runs once for all moves of a chain.
    ppo.minibatch = "chain"
    ppo.batch_size = 625 * 5  # half of the pairs


def _use_demonstrations(config: ConfigDict, name: str) -> None:
    """Learn off-policy from demonstrations.

    The reference has no settings for this task. These are first guesses, for minutes on
    a CPU core (docs/results/baselines.md).
    """
    if name == "ibrl":
        _use_head(config, "gaussian")
    {"rlpd": use_rlpd, "calql": use_calql, "ibrl": use_ibrl}[name](config)
    _hasten_critics(config)
    config.algorithm[name].target_rate = 0.02
    config.model.chunk = 4  # as the other policies
    config.rollout.update(num_envs=8, num_chunks=25, reset_at_iteration=False)
    config.evaluate.num_episodes = config.evaluate.num_envs = 50


def _use_ddim(config: ConfigDict) -> None:
    config.model.sampling.update(ddim_steps=5, num_tuned_steps=5)
    config.algorithm.ppo.batch_size = 625 * 5  # half of the pairs


def _use_off_policy(config: ConfigDict, name: str) -> None:
    """Learn Q from a replay buffer; the reference has no settings for this task."""
    config.algorithm.name = name
    # All denoising steps are trained.
    config.model.sampling.num_tuned_steps = config.model.diffusion.num_denoising_steps
    settings = config.algorithm[name]
    # An iteration collects a sixteenth of one of Gym. For the critics to learn before
    # the actor follows them, there are more updates for a transition, of smaller
    # batches, and the target networks are faster.
    settings.replay.batch_size = 64 if name == "dql" else 128
    settings.replay.updates_per_transition = {"idql": 0.16, "dql": 0.064}.get(
        name, 0.08
    )
    settings.replay.capacity = 70_000  # A run collects fewer.
    _hasten_critics(config)
    settings.target_rate = 0.05
    settings.critic_warmup = 5
    settings.reward_scale = 0.1  # of at most 8 for a chunk
    if name == "idql":
        settings.num_samples = 10
    if name == "dql":
        # At the paper's weight of 1 the actor leaves its data at once.
        settings.eta, settings.critic_warmup = 0.2, 8


def _hasten_critics(config: ConfigDict) -> None:
    """Let critics learn from the few updates of a run, and doubt what they never saw.

    Rewards go on at the time limit, so values grow to 1 / (1 - discount) rewards, one
    backup after the other. At 0.99 a run of minutes ends before, and until then the
    critics prefer what they have seen least: the policies of IDQL, DQL, QSM and OGPO
    left the table (docs/results/baselines.md).
    """
    config.algorithm[config.algorithm.name].discount = 0.95
    config.critic.layer_norm = True


def _use_ogpo(config: ConfigDict) -> None:
    """OGPO, with short iterations so that the data follow the actor.

    The paper has no settings for this task; sizes are for two CPU cores.
    """
    ogpo = use_ogpo(config)
    config.rollout.update(num_envs=10, num_chunks=5, reset_at_iteration=False)
    ogpo.replay.updates_per_transition = 1.0
    ogpo.replay.min_fill = 1000  # 40 episodes
    _hasten_critics(config)
    ogpo.target_value = "min"
    ogpo.reward_scale = 0.1  # of at most 8 for a chunk
    loop = config.loop.finetune
    loop.num_iterations = 320  # 640 episodes
    loop.log_every, loop.evaluate_every, loop.checkpoint_every = 10, 40, 80


def _use_regression(config: ConfigDict, name: str) -> None:
    """DRWR or DAWR; the reference has no settings for this task."""
    config.algorithm.name = name
    # The 50 x 25 chunks of an iteration are looked at 16 times, in 80 updates.
    config.algorithm.drwr.batch_size = 250
    config.algorithm.dawr.update(batch_size=250, replay_ratio=16)
    config.algorithm.dawr.capacity = 12_500  # ten iterations, as in the reference


def _use_steering(config: ConfigDict) -> None:
    """DSRL, with short iterations so that the data follow the actor.

    It has no settings for this task. An update decodes twice, so there are 0.75 for a
    transition, a fifth of the published number.
    """
    config.algorithm.name = "dsrl"
    config.model.sampling.update(ddim_steps=5, num_tuned_steps=5)
    config.critic.update(activation="tanh", layer_norm=True, residual=False)
    # The environments end their episodes together, after every fifth iteration.
    config.rollout.update(num_envs=8, num_chunks=5, reset_at_iteration=False)
    replay = config.algorithm.dsrl.replay
    replay.update(capacity=50_000, updates_per_transition=0.75)
    replay.update(random_steps=1000, min_fill=1000)  # 40 episodes
    # As in the published code. The median of an untrained actor is the start 0, whose
    # actions may be far better or worse than those of the cloned policy.
    config.evaluate.deterministic = False
    loop = config.loop.finetune
    loop.num_iterations = 400  # 640 episodes
    loop.log_every, loop.evaluate_every, loop.checkpoint_every = 5, 40, 100


def _use_head(config: ConfigDict, head: str) -> None:
    """Use a smaller network, and half of the chunks for a minibatch."""
    config.model.kind = head
    if head == "gaussian":
        config.model.network.hidden_sizes = (256, 256, 256)
    else:
        config.model.network.update(hidden_sizes=(256, 256), residual=False)
        config.model.sampling.draw_clip = 10.0  # The reference clips none.
    config.algorithm.ppo.batch_size = 625  # half of the 50 x 25 chunks


def _shorten(config: ConfigDict) -> None:
    """Shorten all stages to minutes: a smaller network, fewer and larger updates."""
    config.collect.episodes_per_mode = 8
    config.model.network.hidden_sizes = (256, 256, 256)
    config.loop.pretrain.num_epochs = 600
    config.pretrain.batch_size = 64
    config.pretrain.learning_rate = 1e-3
    config.pretrain.min_learning_rate = 1e-4
    config.pretrain.cycle_epochs = 600
    config.pretrain.warmup_epochs = 10
    # The last policy is the result. To make it vary less, the learning rate ends low,
    # and there are more iterations with more episodes each.
    config.loop.finetune.num_iterations = 90
    config.rollout.num_envs = 64
    ppo = config.algorithm.ppo
    ppo.batch_size = 8000  # half of the pairs
    ppo.actor.min_learning_rate = 3e-6
    ppo.actor.cycle_steps = 90


# What the variants `m1_KIND`, `m2_KIND` and `m3_KIND` change.
_KINDS: dict[str, Callable[[ConfigDict], None]] = {
    "ddim": _use_ddim,
    "exact": _use_likelihood,
    "flow": lambda config: _use_flow(config, num_steps=4),
    "flow1": lambda config: _use_flow(config, num_steps=1),
    "flow2": lambda config: _use_flow(config, num_steps=2),
    "fpo": _use_fpo,
    "gaussian": lambda config: _use_head(config, "gaussian"),
    "gmm": lambda config: _use_head(config, "gmm"),
    "pixels": _use_pixels,
    **{name: functools.partial(_use_off_policy, name=name) for name in OFF_POLICY},
    "ogpo": _use_ogpo,
    "drwr": lambda config: _use_regression(config, "drwr"),
    "dawr": lambda config: _use_regression(config, "dawr"),
    "dsrl": _use_steering,
    "rlpd": lambda config: _use_demonstrations(config, "rlpd"),
    "calql": lambda config: _use_demonstrations(config, "calql"),
    "ibrl": lambda config: _use_demonstrations(config, "ibrl"),
}
_LIMIT_TRUNCATES = (
    *OFF_POLICY,
    *("ogpo", "drwr", "dawr", "dsrl", "rlpd", "calql", "ibrl"),
)
VARIANTS = (*SUBSETS, "demo", *(f"{s}_{kind}" for s in SUBSETS for kind in _KINDS))
