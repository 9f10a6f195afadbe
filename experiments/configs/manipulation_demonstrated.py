"""Variants of the manipulation tasks that learn off-policy from demonstrations.

`manipulation.py` lists them. Settings are those of the reference, release 0.8, for
single actions of one environment. Where it has settings of its own for data of one
proficient operator (`ph`), these are used.

| variant | settings of the reference for | other tasks get those of      |
|---------|-------------------------------|-------------------------------|
| `rlpd`  | Lift, Can, Square             | Transport: Square             |
| `calql` | Can, Square                   | Lift: Can, Transport: Square  |
| `ibrl`  | Can, Square, which are alike  | Lift, Transport: theirs       |

Settings that have no counterpart here: the dropout of IBRL's actor, and cycles of
learning rates, which stay constant there too. IBRL clones from its hundred
demonstrations; the reference clones from all, and keeps a hundred. Algorithms follow
their papers; where the reference computes something else, `reference_quirks` of its
settings name it.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from experiments.configs import demonstrated

# Of an iteration of RLPD and IBRL. In the reference it is one control step.
_STEPS = 100
# Entries of an action.
_ACTION_DIM = {"lift": 7, "can": 7, "square": 7, "transport": 14}


class _Rlpd(NamedTuple):
    """RLPD's settings of a task; all steps are control steps.

    rate: of actor, critics and temperature.
    target_rate: of the target critics.
    capacity: of the replay buffer.
    random_steps: under random actions, before the first update.
    updates: of the critics for a step.
    num_steps, evaluate_every: of the whole run and between evaluations.
    num_episodes: of an evaluation.
    """

    rate: float
    target_rate: float
    capacity: int
    random_steps: int
    updates: int
    num_steps: int
    evaluate_every: int
    num_episodes: int


_SQUARE = _Rlpd(1e-4, 0.01, 400_000, 0, 3, 1_000_000, 10_000, 40)
_RLPD = {
    "lift": _Rlpd(3e-4, 0.005, 1_000_000, 5000, 5, 250_000, 5000, 10),
    "can": _SQUARE,
    "square": _SQUARE,
    "transport": _SQUARE,
}
# Iterations of Cal-QL with an episode each, after those without.
_CALQL_EPISODES = {"lift": 1000, "can": 1000, "square": 10_000, "transport": 10_000}
# Time limits of IBRL where they are not those of the other algorithms.
_IBRL_MAX_STEPS = {"can": 250, "square": 350}


def use_rlpd(config: ConfigDict, task: str) -> None:
    """RLPD with new networks."""
    own = _RLPD[task]
    demonstrated.use_rlpd(config)
    _use_networks(config)
    rlpd = config.algorithm.rlpd
    rlpd.replay.update(capacity=own.capacity, batch_size=256)
    rlpd.replay.update(random_steps=own.random_steps, min_fill=own.random_steps)
    rlpd.replay.updates_per_transition = float(own.updates)
    rlpd.replay.updates_per_round = own.updates
    rlpd.target_rate = own.target_rate
    rlpd.target_entropy = -float(_ACTION_DIM[task])
    for part in (rlpd.actor, rlpd.critic, rlpd.temperature):
        part.learning_rate = own.rate
    _set_loop(config, own.num_steps, own.evaluate_every, own.num_episodes)


def use_calql(config: ConfigDict, task: str) -> None:
    """Cal-QL with new networks."""
    demonstrated.use_calql(config)
    _use_networks(config)
    calql = config.algorithm.calql
    calql.replay.batch_size = 256
    calql.offline_iterations, calql.offline_updates = 1000, 1000
    calql.backup_actions = 10
    calql.temperature.learning_rate = 3e-4  # as the critics
    # An episode, and an update for each of its steps.
    config.rollout.update(num_envs=1, num_chunks=config.env.max_steps)
    config.rollout.reset_at_iteration = False
    loop = config.loop.finetune
    loop.num_iterations = calql.offline_iterations + _CALQL_EPISODES[task]
    loop.log_every, loop.evaluate_every, loop.checkpoint_every = 10, 10, 500
    config.evaluate.num_episodes = config.evaluate.num_envs = 40


def use_ibrl(config: ConfigDict, task: str) -> None:
    """IBRL from a cloned Gaussian policy, of a hundred demonstrations."""
    demonstrated.use_ibrl(config)
    config.env.max_steps = _IBRL_MAX_STEPS.get(task, config.env.max_steps)
    config.collect.num_episodes = 100
    config.model.chunk = 1
    network = config.model.network
    network.update(hidden_sizes=(1024,) * 3, activation="relu", residual=False)
    config.critic.hidden_sizes = (1024,) * 3
    config.pretrain.weight_decay = 0.0
    config.pretrain.min_learning_rate = config.pretrain.learning_rate
    # Three updates of the critics and one of the actor for every two steps.
    config.algorithm.ibrl.replay.update(updates_per_transition=1.5, updates_per_round=3)
    config.algorithm.ibrl.replay.update(capacity=400_000, batch_size=256)
    _set_loop(config, 1_000_000, 10_000, 40)


def _use_networks(config: ConfigDict) -> None:
    config.model.network.hidden_sizes = (512,) * 3
    config.critic.hidden_sizes = (256,) * 3


def _set_loop(
    config: ConfigDict, num_steps: int, evaluate_every: int, num_episodes: int
) -> None:
    config.rollout.update(num_envs=1, num_chunks=_STEPS, reset_at_iteration=False)
    loop = config.loop.finetune
    loop.num_iterations = num_steps // _STEPS
    loop.evaluate_every = evaluate_every // _STEPS
    loop.log_every, loop.checkpoint_every = 10, 1000
    config.evaluate.num_episodes = config.evaluate.num_envs = num_episodes
