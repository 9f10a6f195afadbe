"""Settings that Lift, Can, Square and Transport share; their own files name the task.

`paper`, the default, has the settings of the reference implementation for state
policies (v0.8, and the paper's appendix), with scripted demonstrations in the place of
its 300 human ones. An iteration is four episodes in each of 50 environments, 60,000
environment steps for Lift and Can, 80,000 for Square and 160,000 for Transport.

`fast` is for two CPU cores: an iteration of Can takes a quarter of the steps and a
fifth of the updates. `demo` is the beginning of `fast`. `fast_randomized` is `fast`
with other masses, friction, gains, delays and noise in every episode.

The other variants have settings of the reference too, release 0.8, for data sets and
iterations like those of `paper`:

- `unet`: a U-Net in the place of the perceptron. For Square and Transport the files of
  the reference swap the ends of its learning rate, which begins at 1e-4, falls to 2e-5
  and rises again; here it stays at 2e-5;
- `gaussian`, `gmm`: a Gaussian and a mixture of five Gaussians, whose standard
  deviations are learned in fine-tuning alone. The clip range of 0.01 is also that of a
  mixture, although its ratios are of the joint density of a chunk;
- `gaussian_transformer`, `gmm_transformer`: the same by transformers;
- `exact`: PPO with the exact likelihood of actions (paper App. B.5). The reference has
  it for Can alone, whose rate, epochs and number of iterations the other tasks get;
- `drwr`, `dawr`: regression with weights of returns or advantages (paper App.);
- `dipo`, `idql`, `dql`, `qsm`: these off-policy algorithms (arXiv 2305.13122,
  2304.10573, 2208.06193, 2312.11752) on the policy of `paper`;
- `idql_cloned`: `idql` that acts by the policy alone. As critics that have not learned
  choose badly, `idql` starts far below the cloned policy, and this one at it;
- `rlpd`, `calql`, `ibrl`: single actions, from one environment, learned off-policy from
  the demonstrations (arXiv 2302.02948, 2303.05479, 2311.02198);
- `ogpo`, `dsrl`: OGPO (arXiv 2605.03065) on a flow policy, and steering by noise (arXiv
  2506.15799), with settings of their own published code.

`manipulation_others.py` and `manipulation_demonstrated.py` have all but the first four
kinds, and say what differs from the reference. These are for two cores, on the policy
and the data of `fast`; all but the first are first guesses:

- `fast_gaussian`: the Gaussian, tuned on the schedule of `fast`;
- `fast_drwr`, `fast_idql`, `fast_ogpo`: these algorithms.
"""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from dppo_jax.envs.tasks import can, lift, square, transport
from dppo_jax.errors import SettingsError
from experiments.configs import manipulation_demonstrated as demonstrated
from experiments.configs import manipulation_others as others
from experiments.configs.randomized import use_randomization
from experiments.defaults import default_config, script_config
from experiments.settings import use_network


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


class _Networks(NamedTuple):
    """What differs between the tasks for networks that are no perceptrons.

    dim: channels of a U-Net.
    chunk: actions that it predicts.
    rate: at which it is fine-tuned.
    embed_dim: of a transformer.
    std: with which a transformer starts.
    """

    dim: int
    chunk: int
    rate: float
    embed_dim: int
    std: float = 0.1


_NETWORKS = {
    "lift": _Networks(40, 4, 1e-4, 96),
    "can": _Networks(40, 4, 1e-4, 96),
    "square": _Networks(64, 4, 2e-5, 160),
    # Cloned with 0.1 in the reference; for a Gaussian that changes only the scale of
    # the loss, a mixture weighs its modes otherwise.
    "transport": _Networks(64, 16, 2e-5, 160, std=0.08),
}
# Iterations and rate of mixtures from transformers, where they are not those of DPPO.
_GMM_TRANSFORMER = {"can": (300, 1e-5)}


class _Fast(NamedTuple):
    """What `fast` clones from, and for how long; width of the three hidden layers."""

    num_episodes: int = 100
    width: int = 256
    num_epochs: int = 150


# From a hundred demonstrations the smaller network learns to insert no nut (0.01), this
# one every second (0.57), and with nothing to reinforce fine-tuning learns nothing.
_PRECISE = _Fast(num_episodes=300, width=512, num_epochs=200)
_FAST = {"lift": _Fast(), "can": _Fast(), "square": _PRECISE, "transport": _PRECISE}


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

    config.collect = script_config()

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
    VARIANTS[variant](config, task)
    return config


def _end_failures(config: ConfigDict) -> None:
    """What `fast` changes for Square, whose demonstrations last 92 to 153 steps.

    An arm that has lost the nut wanders to places that no demonstration shows. With a
    limit of 400 steps most transitions are from there, and learning from them makes the
    policy worse.
    """
    config.env.max_steps = 200
    config.env.limit_terminates = True


def _hasten(config: ConfigDict, task: str) -> None:
    """Shorten all stages for two CPU cores."""
    # An episode ends at its first success. With a success of 0.7 this saves a third of
    # the steps, those in which a solved task stays solved.
    config.env.options.end_on_success = True
    # Less data, cloned for less long, leave more for fine-tuning to improve. An update
    # takes a quarter of the time of the paper's networks or less.
    own = _FAST[task]
    config.collect.num_episodes = own.num_episodes
    config.model.network.hidden_sizes = (own.width,) * 3
    # Some ten thousand updates in place of half a million, at a higher learning rate.
    config.loop.pretrain.num_epochs = config.pretrain.cycle_epochs = own.num_epochs
    config.pretrain.learning_rate = 1e-3
    config.pretrain.min_learning_rate = 1e-4
    config.pretrain.warmup_epochs = 5
    # Twice as many environments for fewer chunks, so that the policy which collects is
    # never old. Episodes go on in the next iteration.
    config.rollout.num_envs = 100
    config.rollout.num_chunks = num_chunks = 40
    config.rollout.reset_at_iteration = False
    config.loop.finetune.num_iterations = 150
    # Gradients of five denoising steps cost half of those of ten.
    config.model.sampling.num_tuned_steps = num_tuned = 5
    ppo = config.algorithm.ppo
    # The critic and the encoder then run once for all moves of a chain.
    ppo.minibatch = "chain"
    ppo.batch_size = 100 * num_chunks * num_tuned // 10
    # Forty updates. With ten or twenty an iteration improves the policy less, with
    # eighty no more.
    ppo.epochs = 4
    # Ratios are means over the entries of a chunk. At the paper's 0.001 for the
    # first denoising steps, most are clipped before the policy changes.
    ppo.clip_top = ppo.clip_base = 0.02
    # A success comes after about 30 chunks; sooner is better.
    ppo.discount = 0.99
    # The policy is far from converged, so the critic may follow at once.
    ppo.critic_warmup = 1
    for settings in (ppo.actor, ppo.critic):
        settings.cycle_steps = 150
    config.loop.finetune.evaluate_every = 10
    if task == "square":
        _end_failures(config)


def _set_rate(config: ConfigDict, rate: float) -> None:
    """Fine-tune at a constant rate."""
    actor = config.algorithm.ppo.actor
    actor.learning_rate = actor.min_learning_rate = rate


def _use_unet(config: ConfigDict, task: str) -> None:
    own = _NETWORKS[task]
    config.env.executed = config.model.chunk
    config.model.chunk = own.chunk
    use_network(config, "unet")
    config.model.network.dim = own.dim
    _set_rate(config, own.rate)


def _use_head(config: ConfigDict, head: str) -> None:
    """Use a policy of one move, with as many chunks in a minibatch as pairs before."""
    config.model.kind = head
    # Cloning keeps it, because the demonstrations would leave little to explore with.
    config.model[head].update(learn_fixed_std=True, clone_std=False, std_max=0.2)
    config.model.sampling.num_tuned_steps = 1
    if head == "gmm":
        config.model.sampling.draw_clip = 10.0  # The reference clips none.


def _use_transformer(config: ConfigDict, task: str, head: str) -> None:
    own = _NETWORKS[task]
    _use_head(config, head)
    config.model[head].fixed_std = own.std
    use_network(config, "transformer")
    config.model.network.update(embed_dim=own.embed_dim, num_heads=4, num_layers=4)
    if head == "gmm" and task in _GMM_TRANSFORMER:
        config.loop.finetune.num_iterations, rate = _GMM_TRANSFORMER[task]
        _set_rate(config, rate)


def _use_likelihood(config: ConfigDict) -> None:
    config.algorithm.name = "ppo_exact"
    config.loop.finetune.num_iterations = 300
    config.model.sampling.draw_clip = 10.0  # The reference clips none.
    exact = config.algorithm.ppo_exact
    exact.discount, exact.target_kl, exact.critic_warmup = 0.999, 1.0, 2
    # Half of the chunks.
    exact.batch_size = config.rollout.num_envs * config.rollout.num_chunks // 2
    exact.epochs = 10


def _use_fast(config: ConfigDict, task: str) -> None:
    _hasten(config, task)


def _use_fast_randomized(config: ConfigDict, task: str) -> None:
    _use_fast(config, task)
    # The servos of the arms have all of the damping.
    use_randomization(config, damping=False)


def _use_demo(config: ConfigDict, task: str) -> None:
    """Show in minutes that fine-tuning improves a policy, not how far it goes."""
    _use_fast(config, task)
    config.loop.finetune.num_iterations = 60
    config.loop.finetune.evaluate_every = 20


def _use_fast_gaussian(config: ConfigDict, task: str) -> None:
    """Tune a Gaussian on the schedule of `fast`, with as many chunks in a minibatch."""
    _use_fast(config, task)
    config.algorithm.ppo.batch_size //= config.model.sampling.num_tuned_steps
    _use_head(config, "gaussian")


def _use_fast_other(
    config: ConfigDict, task: str, use: Callable[[ConfigDict], None]
) -> None:
    """Use another algorithm on the policy of `fast`."""
    _use_fast(config, task)
    use(config)


# What each variant changes, given the configuration of `paper` and the task.
VARIANTS: dict[str, Callable[[ConfigDict, str], None]] = {
    "paper": lambda config, task: None,
    "fast": _use_fast,
    "fast_randomized": _use_fast_randomized,
    "demo": _use_demo,
    "unet": _use_unet,
    "exact": lambda config, task: _use_likelihood(config),
    "gaussian": lambda config, task: _use_head(config, "gaussian"),
    "gmm": lambda config, task: _use_head(config, "gmm"),
    "gaussian_transformer": lambda config, task: _use_transformer(
        config, task, "gaussian"
    ),
    "gmm_transformer": lambda config, task: _use_transformer(config, task, "gmm"),
    "drwr": lambda config, task: others.use_drwr(config),
    "dawr": lambda config, task: others.use_dawr(config),
    "dipo": lambda config, task: others.use_off_policy(config, task, "dipo"),
    "idql": lambda config, task: others.use_off_policy(config, task, "idql"),
    "idql_cloned": others.use_idql_cloned,
    "dql": lambda config, task: others.use_off_policy(config, task, "dql"),
    "qsm": lambda config, task: others.use_off_policy(config, task, "qsm"),
    "rlpd": demonstrated.use_rlpd,
    "calql": demonstrated.use_calql,
    "ibrl": demonstrated.use_ibrl,
    "ogpo": others.use_ogpo,
    "dsrl": others.use_dsrl,
    "fast_gaussian": _use_fast_gaussian,
    "fast_drwr": lambda config, task: _use_fast_other(
        config, task, others.use_fast_drwr
    ),
    "fast_idql": lambda config, task: _use_fast_other(
        config, task, others.use_fast_idql
    ),
    "fast_ogpo": lambda config, task: _use_fast_other(
        config, task, others.use_fast_ogpo
    ),
}
