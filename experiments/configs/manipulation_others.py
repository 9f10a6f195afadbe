"""Variants of the manipulation tasks with other algorithms than PPO.

`manipulation.py` lists them. Algorithms follow their papers; where the reference
computes something else, `reference_quirks` of its settings name it.

Settings of the reference that have no counterpart here: one in ten of its iterations
evaluates instead of training, and its IDQL has a residual V beside plain critics.

Settings of OGPO's published code that have none: cloning that ends at 45 % success, an
actor's rate that moves between 2e-5 and 4.5e-5, moves whose noise falls along a flow,
and a second update of the critics from episodes that succeeded. It has no settings for
Lift and Can, which get those of Square.

DSRL's published code gives no length of a run, so the number of iterations is our
choice. Its rewards are lower by 1 in every control step. As no episode terminates, this
lowers all values alike.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from experiments.configs import short_ogpo

# Iterations where they are not those of DPPO.
_NUM_ITERATIONS = {
    ("dipo", "lift"): 300,
    ("dipo", "can"): 300,
    ("dipo", "square"): 300,
    ("dql", "can"): 300,
}
# Iterations in which only critics learn, where these are not 5.
_WARMUP = {("dipo", "can"): 2, ("dipo", "square"): 2, ("dipo", "transport"): 2}
# The latest chunks; the reference counts them in rows of its 50 environments.
_CAPACITY = {"dipo": 1_000_000, "dql": 1_000_000, "idql": 250_000, "qsm": 250_000}


def use_drwr(config: ConfigDict) -> None:
    config.algorithm.name = "drwr"
    drwr = config.algorithm.drwr
    drwr.discount = 0.999
    drwr.actor.update(learning_rate=1e-5, weight_decay=1e-6)


def use_dawr(config: ConfigDict) -> None:
    config.algorithm.name = "dawr"
    dawr = config.algorithm.dawr
    # As the reference's files say. Its code computes with 0.99 whatever they say, which
    # is a part of the quirk "fixed_targets".
    dawr.discount = 0.999
    dawr.reward_scale, dawr.critic_warmup = 1.0, 2
    dawr.capacity = 150_000  # 3000 rows of 50 environments
    dawr.actor.learning_rate = 1e-5


def use_off_policy(config: ConfigDict, task: str, name: str) -> None:
    """Learn Q(s, a) of chunks by DIPO, IDQL, DQL or QSM."""
    config.algorithm.name = name
    # All denoising steps are trained.
    config.model.sampling.num_tuned_steps = config.model.diffusion.num_denoising_steps
    # The reference's files ask for residual critics, but misspell it, so theirs are
    # plain.
    config.critic.residual = False
    settings = config.algorithm[name]
    settings.discount, settings.reward_scale = 0.999, 1.0
    settings.actor.learning_rate = 1e-5
    settings.critic_warmup = _WARMUP.get((name, task), 5)
    settings.replay.capacity = _CAPACITY[name]
    loop = config.loop.finetune
    loop.num_iterations = _NUM_ITERATIONS.get((name, task), loop.num_iterations)
    # Every checkpoint holds the replay buffer.
    loop.checkpoint_every = 50
    if name == "dipo":
        # A replay ratio of 16, over a batch size of 1000. It is 64 for Gym.
        settings.replay.updates_per_transition = 0.016
    if name == "idql":
        settings.num_samples = 10


def use_idql_cloned(config: ConfigDict, task: str) -> None:
    """IDQL that clones its own data, and chooses nothing."""
    use_off_policy(config, task, "idql")
    config.algorithm.idql.num_samples = 1


class _Ogpo(NamedTuple):
    """OGPO's settings of a task; all steps are control steps.

    hidden_sizes: of the policy and of the critics.
    discount: of a control step.
    first_update: step of the first update.
    num_steps, evaluate_every: of the whole run and between evaluations.
    """

    hidden_sizes: tuple[int, ...]
    discount: float
    first_update: int
    num_steps: int
    evaluate_every: int


_SQUARE = _Ogpo((512,) * 4, 0.99, 10_000, 2_000_000, 10_000)
_OGPO = {
    "lift": _SQUARE,
    "can": _SQUARE,
    "square": _SQUARE,
    "transport": _Ogpo((512,) * 5, 0.999, 40_000, 3_000_000, 20_000),
}


def use_ogpo(config: ConfigDict, task: str) -> None:
    """OGPO on a flow of ten steps, with what its scripts have for Square and Transport.

    It agrees on the sign of advantages ("CA") and clones chunks of episodes that
    succeed ("+"). About half a million updates clone the flow.
    """
    own, chunk, max_steps = _OGPO[task], config.model.chunk, config.env.max_steps
    config.env.options.end_on_success = True
    model = config.model
    model.kind = "flow"
    model.network.update(hidden_sizes=own.hidden_sizes, activation="gelu", time_dim=32)
    model.network.update(residual=False, condition_sizes=None)
    model.sampling.update(flow_steps=10, num_tuned_steps=10, final_clip=1.0)
    model.noise.update(std_min=0.05, std_max=0.05)
    config.pretrain.learning_rate = config.pretrain.min_learning_rate = 3e-4
    config.critic.update(hidden_sizes=own.hidden_sizes, activation="gelu")
    config.critic.update(layer_norm=True, residual=False)
    # Its data are written when an episode ends, so an iteration is one of full length.
    config.rollout.update(num_envs=1, num_chunks=max_steps // chunk)
    config.rollout.reset_at_iteration = False

    config.algorithm.name = "ogpo"
    ogpo = config.algorithm.ogpo
    ogpo.discount = own.discount**chunk
    # Its rewards are -1 until the task is solved and 5 then, so the value of solving it
    # after t steps is discount^t (5 + 1 / (1 - discount)) - 1 / (1 - discount). Here a
    # reward of 1 ends the episode: this scale gives the same but for the last term,
    # which no advantage depends on.
    ogpo.reward_scale = 5 + 1 / (1 - own.discount)
    ogpo.advantage, ogpo.clone_coef, ogpo.clone_return = "consensus", 1.0, 1.0
    # One update for a control step.
    ogpo.replay.updates_per_transition = float(chunk)
    ogpo.replay.capacity = 2_000_000 // chunk
    ogpo.replay.min_fill = own.first_update // chunk
    loop = config.loop.finetune
    loop.num_iterations = own.num_steps // max_steps
    loop.evaluate_every = own.evaluate_every // max_steps
    loop.log_every, loop.checkpoint_every = 5, 500
    config.evaluate.num_episodes = config.evaluate.num_envs = 64


class _Dsrl(NamedTuple):
    """DSRL's settings of a task.

    variant: see `algorithms/dsrl.py`.
    steps, ddim_steps: of cloning, and of DDIM.
    discount: of a chunk.
    noise_bound: of the start of a chain.
    warm_up, evaluate_every: chunks of each environment.
    updates: of soft actor-critic for a chunk of each environment.
    width: of the three hidden layers of the actor and of the critics.
    """

    variant: str
    steps: int
    ddim_steps: int
    discount: float
    noise_bound: float
    warm_up: int
    updates: int
    width: int
    evaluate_every: int


_DSRL = {
    "lift": _Dsrl("noise_aliasing", 20, 8, 0.99, 1.5, 1500, 30, 2048, 3000),
    "can": _Dsrl("noise_aliasing", 20, 8, 0.99, 1.5, 1500, 20, 2048, 3000),
    "square": _Dsrl("noise_aliasing", 100, 8, 0.999, 1.5, 2000, 20, 2048, 4000),
    "transport": _Dsrl("sac", 100, 100, 0.99, 1.0, 20_000, 20, 128, 8000),
}


def use_dsrl(config: ConfigDict, task: str) -> None:
    """DSRL with four environments, as its published code has."""
    own, num_envs = _DSRL[task], 4
    sampling = config.model.sampling
    config.model.diffusion.num_denoising_steps = own.steps
    sampling.update(ddim_steps=own.ddim_steps, num_tuned_steps=own.ddim_steps)
    hidden_sizes = (own.width,) * 3
    config.critic.update(hidden_sizes=hidden_sizes, activation="tanh")
    config.critic.update(layer_norm=True, residual=False)
    num_chunks = config.env.max_steps // config.model.chunk  # an episode
    config.rollout.update(num_envs=num_envs, num_chunks=num_chunks)
    config.rollout.reset_at_iteration = False

    config.algorithm.name = "dsrl"
    dsrl = config.algorithm.dsrl
    dsrl.variant, dsrl.noise_bound = own.variant, own.noise_bound
    dsrl.discount = own.discount
    dsrl.network.hidden_sizes = hidden_sizes
    # Ten distillations follow the updates of a round.
    batches = own.updates + (10 if own.variant == "noise_aliasing" else 0)
    dsrl.replay.update(
        updates_per_round=batches, updates_per_transition=batches / num_envs
    )
    warm_up = own.warm_up * num_envs
    dsrl.replay.update(random_steps=warm_up, min_fill=warm_up)
    loop = config.loop.finetune
    loop.num_iterations = 1000
    dsrl.replay.capacity = 400_000  # all that a run collects
    loop.evaluate_every = own.evaluate_every // num_chunks
    loop.log_every, loop.checkpoint_every = 5, 200
    config.evaluate.num_episodes = 200
    # As in the published code. The median of an untrained actor is the start 0, whose
    # actions may be far better or worse than those of the cloned policy.
    config.evaluate.deterministic = False


def use_fast_drwr(config: ConfigDict) -> None:
    """DRWR with 16 epochs of small minibatches, at ten times the reference's rate."""
    use_drwr(config)
    # It learns from episodes that end: one or more in each environment.
    num_chunks = config.env.max_steps // config.model.chunk
    config.rollout.update(num_envs=50, num_chunks=num_chunks, reset_at_iteration=True)
    config.algorithm.drwr.batch_size = 250
    config.algorithm.drwr.actor.learning_rate = 1e-4


def use_fast_idql(config: ConfigDict) -> None:
    """IDQL with as many updates for a transition as in the reference, of fewer rows."""
    use_off_policy(config, "", "idql")
    idql = config.algorithm.idql
    idql.actor.learning_rate = 1e-4
    idql.replay.batch_size = 128
    # With this discount and target rate the critics converge within a run.
    idql.discount, idql.target_rate = 0.97, 0.02
    config.critic.layer_norm = True  # bounds values of unseen actions


def use_fast_ogpo(config: ConfigDict) -> None:
    """OGPO on five steps of DDIM, with short iterations so that the data follow it.

    Sizes are those of `ogpo` of the runner tasks.
    """
    ogpo = short_ogpo.use_ogpo(config)
    config.rollout.update(num_envs=10, num_chunks=25, reset_at_iteration=False)
    ogpo.replay.update(updates_per_transition=0.4, min_fill=2000)
    ogpo.actor.learning_rate = 1e-4
    ogpo.reward_scale = 105.0  # as in `ogpo` of Square
    ogpo.advantage, ogpo.clone_coef, ogpo.clone_return = "consensus", 1.0, 1.0
    loop = config.loop.finetune
    loop.num_iterations = 150
    loop.log_every, loop.evaluate_every, loop.checkpoint_every = 5, 25, 50
