"""Default settings of all stages; the files in `configs/` change some and say why."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dppo_jax import algorithms, policies
from dppo_jax.algorithms import clone as pretrain
from dppo_jax.algorithms import ppo
from dppo_jax.envs import build
from dppo_jax.networks import build_encoder


def default_config() -> ConfigDict:
    """The configuration of all stages; they share one, so that their settings agree."""
    config = ConfigDict()
    config.name = ""  # of the directories below runs and data
    config.seed = 0  # of all random numbers
    config.num_seeds = 1  # pretrain, finetune: seed, seed + 1, ... in one program
    config.run_dir = ""  # empty: runs/<name>/<stage>, or <stage>_seeds for many seeds
    config.data = ""  # empty: data/<name>, which experiments.collect writes
    # Empty: runs/<name>/pretrain (evaluate: runs/<name>/finetune). none: new networks,
    # with the bounds of the data, or of random actions if there are no data.
    config.policy = ""
    config.env = build.default_config()
    config.model = policies.default_config()
    config.critic = ConfigDict(
        dict(
            hidden_sizes=(256, 256, 256),  # width of every hidden layer
            activation="mish",  # of the hidden layers
            layer_norm=False,  # after every hidden layer
            residual=True,  # pairs of layers with skip connections
            compute_dtype="float32",  # or "bfloat16", for accelerators
            encoder=build_encoder.default_config(),
        )
    )
    config.pretrain = pretrain.default_config()
    config.rollout = rollout_config(num_envs=40, num_chunks=100)
    # Standard deviation of noise on the actions of fine-tuning, which evaluations do
    # not have, in units of half the range of an action in the data.
    config.rollout.action_noise = 0.0
    config.rollout.action_noise_start = 0  # iterations before it begins
    config.rollout.action_noise_ramp = 0  # iterations until it is full; 0: at once
    config.algorithm = algorithms.default_config()
    # finetune: how many devices share the environments, 0 for all. If distributed, each
    # host runs a process, see docs/scaling.md. Set the last three only if nothing else
    # (SLURM, Kubernetes, a TPU pod) tells JAX which processes there are.
    config.mesh = ConfigDict(
        dict(
            devices=1,
            distributed=False,
            coordinator="",  # host:port of the first process
            num_processes=placeholder(int),  # of all hosts
            process_id=placeholder(int),  # of this host, from 0
        )
    )
    # Where to send the metrics besides the run directory: Weights & Biases.
    config.wandb = ConfigDict(
        dict(
            project=placeholder(str),  # None: nothing is sent
            entity=placeholder(str),  # user or team; None: that of the login
            mode=placeholder(str),  # "online" or "offline"; None: as WANDB_MODE says
        )
    )
    config.evaluate = ConfigDict(
        dict(
            num_episodes=200,  # one from each start
            num_envs=200,  # environments that run at once
            deterministic=True,  # False: as the policy explores
            seed=0,  # of the starts and of the policy's random numbers
        )
    )
    # experiments.evaluate scores further num_episodes until the 95 % interval of the
    # success is at most this wide; 0: it scores num_episodes.
    config.evaluate.until_width = 0.0
    config.collect = ConfigDict()  # each demonstrator has its own settings
    # Host loops: how many iterations (epochs), and how many of them between rows,
    # evaluations and checkpoints. With evaluate_every=0 there is one evaluation before
    # and one after.
    config.loop = ConfigDict()
    config.loop.collect = ConfigDict(
        dict(num_iterations=1000, log_every=1, checkpoint_every=20)
    )
    config.loop.pretrain = ConfigDict(
        dict(num_epochs=1000, log_every=10, evaluate_every=0, checkpoint_every=500)
    )
    config.loop.finetune = ConfigDict(
        dict(num_iterations=100, log_every=1, evaluate_every=10, checkpoint_every=10)
    )
    # Fine-tuning ends when an evaluation has this mean return; None: never.
    config.loop.finetune.stop_at_return = placeholder(float)
    # Evaluations are skipped after iterations whose roll-outs have a lower mean return
    # (`episode_return`), and before the first iteration; None: none is skipped.
    config.loop.finetune.evaluate_from_return = placeholder(float)
    for stage in ("pretrain", "finetune"):
        # Rows in a row without a single update with finite gradients that end a run.
        config.loop[stage].max_skipped = 3
        # The metric whose highest evaluation is kept as the checkpoint `best`.
        config.loop[stage].keep_best = "eval/episode_return"
    # The lock refuses mistyped keys. These sections stay open, because their keys
    # depend on the task, the network and the demonstrator.
    config.lock()
    config.env.options.unlock()
    config.model.network.options.unlock()
    config.collect.unlock()
    return config


def rollout_config(*, num_envs: int, num_chunks: int) -> ConfigDict:
    """Settings of the roll-outs in fine-tuning."""
    config = ConfigDict()
    config.num_envs = num_envs  # environments that run at once
    config.num_chunks = num_chunks  # action chunks per environment and iteration
    config.reset_at_iteration = True  # False: episodes go on in the next one
    # Control steps under random actions to find bounds, if there are no data.
    config.random_steps = 20_000
    return config


def script_config() -> ConfigDict:
    """`config.collect` for the scripts of the manipulation tasks."""
    config = ConfigDict()
    config.num_episodes = 300  # as many as the human data sets have
    # Standard deviation, as a share of the greatest action, of what is added to the
    # noise of the last action times 0.7.
    config.noise = 0.1
    config.success_only = True  # leave out episodes that fail
    config.steps_after_success = 20  # control steps until an episode ends
    return config.lock()


def demonstrator_config() -> ConfigDict:
    """`config.collect` for a demonstrator that PPO trains from new networks."""
    config = ConfigDict()
    config.target_return = 0.0  # mean return of exploring episodes that ends training
    config.recent_iterations = 10  # iterations over which this mean is taken
    config.num_control_steps = 100_000  # to record
    config.model = policies.default_config()
    config.model.kind, config.model.chunk = "gaussian", 1
    config.model.network.update(hidden_sizes=(64, 64), activation="tanh")
    config.model.network.residual = False
    config.model.sampling.num_tuned_steps = 1
    config.model.gaussian.update(fixed_std=0.5, learn_fixed_std=True, std_min=0.1)
    # Of the demonstrator; `config.critic` explains them.
    config.critic = ConfigDict(
        dict(hidden_sizes=(64, 64), activation="tanh", layer_norm=False, residual=False)
    )
    config.critic.compute_dtype = "float32"  # or "bfloat16", for accelerators
    config.critic.encoder = build_encoder.default_config()
    config.rollout = rollout_config(num_envs=64, num_chunks=64)
    config.rollout.reset_at_iteration = False
    config.ppo = ppo.default_config()
    config.ppo.update(batch_size=512, epochs=10, clip_top=0.1, clip_base=0.1)
    for settings, rate in ((config.ppo.actor, 3e-4), (config.ppo.critic, 1e-3)):
        settings.update(learning_rate=rate, min_learning_rate=rate, warmup_steps=0)
        settings.max_grad_norm = 0.5
    return config.lock()
