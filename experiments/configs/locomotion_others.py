"""Variants of the runner tasks with other algorithms than PPO, and `cpu`.

They start from the policy of `cpu`, or from new networks. `locomotion.py` lists them.
"""

from ml_collections import ConfigDict

from experiments.configs import short_ogpo
from experiments.configs.demonstrated import use_calql, use_ibrl, use_rlpd


def shrink(config: ConfigDict) -> None:
    """Use a smaller network and iterations of a fifth of the size."""
    config.collect.num_control_steps = 100_000
    config.model.network.hidden_sizes = (256, 256, 256)
    # On two cores a larger minibatch takes hardly longer. Fewer epochs save time too.
    config.loop.pretrain.num_epochs = config.pretrain.cycle_epochs = 100
    config.pretrain.batch_size = 512
    config.loop.finetune.num_iterations = 200
    config.rollout.num_chunks = 100
    ppo = config.algorithm.ppo
    # A quarter of the pairs: as many updates per iteration, on a fifth of the data.
    ppo.batch_size = 10_000
    ppo.actor.cycle_steps = ppo.critic.cycle_steps = 200
    config.evaluate.num_episodes = config.evaluate.num_envs = 40


def use_regression(config: ConfigDict, name: str) -> None:
    """DRWR or DAWR on the policy of `cpu`; sizes are first guesses for two cores.

    As in the reference, but for half of the steps in an iteration and, for DAWR, a
    quarter of the updates for each of them.
    """
    shrink(config)
    config.algorithm.name = name
    config.loop.finetune.num_iterations = 60
    # An episode of full length: DRWR learns from episodes that end.
    config.rollout.update(num_chunks=250, reset_at_iteration=True)
    config.algorithm.dawr.replay_ratio = 16
    config.algorithm.dawr.capacity = 100_000  # ten iterations


def use_steering(config: ConfigDict, task: str) -> None:
    """DSRL on the policy of `cpu`; sizes are first guesses for two cores.

    The published code has larger networks for Walker2d and HalfCheetah and makes five
    times as many updates for a transition.
    """
    shrink(config)
    config.algorithm.name = "dsrl"
    config.model.sampling.update(ddim_steps=5, num_tuned_steps=5)
    config.critic.update(activation="tanh", layer_norm=True, residual=False)
    config.rollout.update(num_envs=8, num_chunks=10)
    dsrl = config.algorithm.dsrl
    dsrl.noise_bound = 2.5 if task == "walker2d" else 1.5
    dsrl.replay.update(capacity=100_000, updates_per_transition=0.75)
    dsrl.replay.update(random_steps=4000, min_fill=4000)
    # As in the published code. The median of an untrained actor is the start 0, whose
    # actions may be far better or worse than those of the cloned policy.
    config.evaluate.deterministic = False
    loop = config.loop.finetune
    loop.num_iterations = 400  # 128,000 control steps
    loop.log_every, loop.evaluate_every, loop.checkpoint_every = 10, 40, 100


def use_off_policy(config: ConfigDict, name: str) -> None:
    """Small networks, short iterations and small batches, for minutes on a CPU.

    The reference makes 0.016 (DQL, QSM) to 0.128 updates for a transition, of 1000
    rows, over a hundred times as many transitions.
    """
    shrink(config)
    config.algorithm.name = name
    # All denoising steps are trained.
    config.model.sampling.num_tuned_steps = config.model.diffusion.num_denoising_steps
    config.rollout.num_chunks = 50
    config.loop.finetune.num_iterations = 100
    settings = config.algorithm[name]
    settings.replay.batch_size = 128
    settings.replay.updates_per_transition = 0.128
    settings.replay.capacity = 200_000  # all that a run collects
    # With this discount and target rate the critics converge within a run.
    settings.discount, settings.target_rate = 0.97, 0.02
    settings.critic_warmup = 5
    config.critic.layer_norm = True  # bounds values of unseen actions
    if name == "idql":
        settings.num_samples = 10
    if name == "dql":
        # Its updates take several times as long, through whole chains.
        settings.replay.update(batch_size=64, updates_per_transition=0.05)
        settings.eta = 0.2


def use_ogpo(config: ConfigDict) -> None:
    """OGPO on the policy of `v0_8`, for 120,000 control steps; sizes for two cores.

    The paper has no settings for this task.
    """
    ogpo = short_ogpo.use_ogpo(config)
    # Short iterations, so that the data follow the policy: 200 chunks.
    config.rollout.update(num_envs=8, num_chunks=25)
    # Twenty updates of the actor for 400 chunks; the paper has 1600.
    ogpo.replay.update(updates_per_transition=0.5, min_fill=2000)
    ogpo.discount = 0.99  # as in DPPO
    ogpo.reward_scale = 0.01  # of about 12 for a chunk
    ogpo.actor.learning_rate = 1e-4  # as in DPPO
    loop = config.loop.finetune
    loop.num_iterations = 150
    loop.log_every, loop.evaluate_every, loop.checkpoint_every = 5, 25, 50
    config.evaluate.num_episodes = config.evaluate.num_envs = 40


def use_sac(config: ConfigDict) -> None:
    """Train new networks by SAC; sizes and rates are those of arXiv 1812.05905."""
    config.policy = "none"
    config.algorithm.name = "sac"
    config.model.kind, config.model.chunk = "squashed", 1
    for network in (config.model.network, config.critic):
        network.update(hidden_sizes=(256, 256), activation="relu", residual=False)
    # Iterations must be short so that the data follow the policy: 256 transitions and
    # as many updates, a quarter of the steps of a full-length episode.
    config.rollout.num_envs = 8
    config.rollout.num_chunks = 32
    # Updates take nearly all of the time; half of the paper's batch size halves it.
    config.algorithm.sac.replay.batch_size = 128
    loop = config.loop.finetune
    loop.num_iterations = 2000  # half a million control steps
    # An evaluation is ten episodes, as many steps as 40 iterations collect.
    config.evaluate.num_episodes = config.evaluate.num_envs = 10
    loop.log_every, loop.evaluate_every = 10, 40
    # Every checkpoint holds the replay buffer, 112 bytes for a transition of Hopper,
    # and takes as long as a dozen iterations.
    loop.checkpoint_every = 1000


def use_demonstrations(config: ConfigDict, name: str) -> None:
    """Learn off-policy from demonstrations, with the reference's networks."""
    {"rlpd": use_rlpd, "calql": use_calql, "ibrl": use_ibrl}[name](config)
    if name == "ibrl":
        config.model.chunk = 1
        config.model.network.update(hidden_sizes=(256, 256, 256), residual=False)
    config.collect.num_control_steps = 100_000
    config.rollout.update(num_envs=8, num_chunks=32)
    config.evaluate.num_episodes = config.evaluate.num_envs = 10
