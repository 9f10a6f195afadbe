"""Settings of algorithms that learn off-policy from demonstrations, for CPUs.

Networks and rates are those of the reference implementation for HalfCheetah, which acts
by single actions from one environment. Updates take nearly all of the time, so there
are fewer of them here for every transition. The numbers of updates and iterations are
first guesses; docs/results/baselines.md shows what two minutes of a core give.
"""

from ml_collections import ConfigDict


def use_rlpd(config: ConfigDict) -> None:
    """RLPD with new networks; the paper makes 20 updates for each transition."""
    _start_squashed(config)
    config.algorithm.name = "rlpd"
    settings = config.algorithm.rlpd
    settings.replay.update(updates_per_transition=4.0, updates_per_round=4)
    settings.replay.update(batch_size=128, random_steps=0, min_fill=0)
    settings.num_critics = 5
    _set_loop(config, num_iterations=100)


def use_calql(config: ConfigDict) -> None:
    """Cal-QL with new networks."""
    _start_squashed(config)
    config.algorithm.name = "calql"
    settings = config.algorithm.calql
    settings.replay.batch_size = 128
    settings.offline_iterations, settings.offline_updates = 40, 500
    settings.backup_actions = 4
    _set_loop(config, num_iterations=240)


def use_ibrl(config: ConfigDict) -> None:
    """IBRL from a cloned Gaussian policy, whose network the caller chooses."""
    config.model.kind = "gaussian"
    _use_critic(config, (256, 256, 256))
    config.algorithm.name = "ibrl"
    config.algorithm.ibrl.replay.batch_size = 128
    _set_loop(config, num_iterations=150)


def _start_squashed(config: ConfigDict) -> None:
    config.policy = "none"
    config.model.kind, config.model.chunk = "squashed", 1
    config.model.network.update(
        hidden_sizes=(256, 256), activation="relu", residual=False
    )
    _use_critic(config, (256, 256))


def _use_critic(config: ConfigDict, hidden_sizes: tuple[int, ...]) -> None:
    config.critic.update(
        hidden_sizes=hidden_sizes, activation="relu", residual=False, layer_norm=True
    )


def _set_loop(config: ConfigDict, *, num_iterations: int) -> None:
    loop = config.loop.finetune
    loop.num_iterations = num_iterations
    loop.log_every, loop.evaluate_every = 5, 20
    # Every checkpoint holds the replay buffer.
    loop.checkpoint_every = 100
