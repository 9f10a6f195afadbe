"""Obstacle avoidance (D3IL) with the settings of the paper's appendix.

`avoid.py:m1`, `:m2` and `:m3` are the paper's three data sets: half of the episodes
pass the rewarded gap 5 of the third row, the other half gap 6, 7 or 8 respectively.
`avoid.py:demo` is m1, shortened to a few minutes on two CPU cores.

These variants have other policies or algorithms, and `m2` and `m3` have them too:

- `:m1_exact`: the same policy, fine-tuned by PPO with the exact likelihood of actions
  (paper App. B.5) instead of DPPO;
- `:m1_flow`: a flow policy of four steps;
- `:m1_fpo`: the same flow in ten steps, fine-tuned by FPO++ (arXiv 2602.02481);
- `:m1_gaussian` and `:m1_gmm`: a Gaussian and a mixture of five Gaussians, with the
  settings of the reference implementation (v0.8);
- `:m1_rlpd` and `:m1_calql`: new networks, trained from the demonstrations and from
  roll-outs by RLPD (arXiv 2302.02948) and Cal-QL (arXiv 2303.05479);
- `:m1_ibrl`: the policy of `:m1_gaussian`, fine-tuned by IBRL (arXiv 2311.02198).
"""

from ml_collections import ConfigDict

from dppo_jax.demonstrations.scripts.avoid import SUBSETS
from dppo_jax.diffusion.flow import LEAST_STD
from dppo_jax.errors import SettingsError
from experiments.configs.demonstrated import use_calql, use_ibrl, use_rlpd
from experiments.defaults import default_config

_KINDS = (*("exact", "flow", "fpo", "gaussian", "gmm"), *("rlpd", "calql", "ibrl"))
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
    elif kind in ("rlpd", "calql", "ibrl"):
        _use_demonstrations(config, kind)
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


def _use_demonstrations(config: ConfigDict, name: str) -> None:
    """Learn off-policy from demonstrations.

    The reference has no settings for this task. These are first guesses, for minutes on
    two CPU cores; no curves were measured yet.
    """
    if name == "ibrl":
        _use_head(config, "gaussian")
    {"rlpd": use_rlpd, "calql": use_calql, "ibrl": use_ibrl}[name](config)
    config.model.chunk = 4  # as the other policies
    config.rollout.update(num_envs=8, num_chunks=25, reset_at_iteration=False)
    config.evaluate.num_episodes = config.evaluate.num_envs = 50


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
