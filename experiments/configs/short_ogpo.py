"""OGPO in minutes on two CPU cores: what the tasks have in common."""

from ml_collections import ConfigDict


def use_ogpo(config: ConfigDict) -> ConfigDict:
    """Use OGPO (arXiv 2605.03065) with small networks and batches.

    Returns:
        `config.algorithm.ogpo`, for what depends on the task.
    """
    config.algorithm.name = "ogpo"
    # An update samples and scores hundreds of chains, so chains are short.
    config.model.sampling.update(ddim_steps=5, num_tuned_steps=5)
    # As in the paper, but for their size.
    config.critic.update(activation="gelu", layer_norm=True, residual=False)
    ogpo = config.algorithm.ogpo
    # The paper makes many more updates, of the actor above all. With ten times its
    # usual target rate, which it has for Adroit's hand, the sampling actor still moves.
    ogpo.replay.updates_per_round = 10
    ogpo.actor_target_rate = 0.05
    ogpo.replay.update(capacity=50_000, batch_size=128)
    ogpo.update(num_critics=5, actor_states=32, group_size=8)
    return ogpo
