"""Obstacle avoidance (D3IL) with the settings of the paper's appendix.

`avoid.py:m1`, `:m2` and `:m3` are the paper's three data sets: half of the episodes
pass the rewarded gap 5 of the third row, the other half gap 6, 7 or 8 respectively.
`avoid.py:demo` is m1, shortened to a few minutes on two CPU cores.

These variants have other policies or algorithms, and `m2` and `m3` have them too:

- `:m1_exact`: the same policy, fine-tuned by PPO with the exact likelihood of actions
  (paper App. B.5) instead of DPPO;
- `:m1_flow`: a flow policy of four steps;
- `:m1_fpo`: the same flow in ten steps, fine-tuned by FPO++ (arXiv 2602.02481);
- `:m1_idql`, `:m1_dql`, `:m1_qsm`, `:m1_dipo`: the same policy, fine-tuned off-policy
  by these algorithms (arXiv 2304.10573, 2208.06193, 2312.11752, 2305.13122), with sizes
  for two CPU cores;
- `:m1_gaussian` and `:m1_gmm`: a Gaussian and a mixture of five Gaussians, with the
  settings of the reference implementation (v0.8).
"""

from ml_collections import ConfigDict

from dppo_jax.demonstrations.scripts.avoid import SUBSETS
from dppo_jax.diffusion.flow import LEAST_STD
from dppo_jax.errors import SettingsError
from experiments.defaults import default_config

OFF_POLICY = ("idql", "dql", "qsm", "dipo")
_KINDS = ("exact", "flow", "fpo", "gaussian", "gmm", *OFF_POLICY)
VARIANTS = (*SUBSETS, "demo", *(f"{s}_{kind}" for s in SUBSETS for kind in _KINDS))


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
    if kind == "flow":
        _use_flow(config)
    elif kind == "fpo":
        _use_fpo(config)
    elif kind == "exact":
        _use_likelihood(config)
    elif kind in OFF_POLICY:
        _use_off_policy(config, kind)
    elif kind:
        _use_head(config, kind)
    if variant == "m3_gmm":
        config.pretrain.batch_size = 32
    return config


def _use_flow(config: ConfigDict) -> None:
    """A flow policy, fine-tuned as ReinFlow does (arXiv 2505.22094).

    ReinFlow has no settings for this task: what is set here is a first guess.
    """
    num_steps = 4
    _make_flow(config, num_steps=num_steps)
    # Around the 0.1 with which a diffusion policy explores here.
    config.model.noise.update(std_min=0.08, std_max=0.14)
    ppo = config.algorithm.ppo
    ppo.minibatch = ppo.ratio = "chain"
    ppo.batch_size = 625 * num_steps  # half of the 50 x 25 chains
    ppo.denoising_discount = 1.0
    # A chain's log-ratio is a mean over its four moves and its start, so what would be
    # 0.1 for one move alone is 0.02 for the chain.
    ppo.clip_top = ppo.clip_base = 0.02
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
    settings.target_rate = 0.01
    settings.critic_warmup = 10
    settings.reward_scale = 0.1  # of at most 8 for a chunk
    if name == "idql":
        settings.num_samples = 10


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
