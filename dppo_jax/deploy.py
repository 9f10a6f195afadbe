"""Load a policy from its run directory: function, parameters and bounds."""

import functools
import os
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from dppo_jax import algorithms, policies
from dppo_jax.errors import SettingsError
from dppo_jax.normalize import Normalizer, policy_obs, unnormalize_action
from dppo_jax.training.checkpoint import SavedPolicy, read_policy
from dppo_jax.training.config_file import check_types
from dppo_jax.training.trees import check_matches, optional_as, with_types
from dppo_jax.types import Act, Array, Obs, PyTree

# An observation in the units of the task; an array is the entry `state`.
Observation = np.ndarray | Mapping[str, np.ndarray]


class LoadedPolicy(NamedTuple):
    """A policy from a checkpoint.

    params: the parameters that `act` takes.
    act: see `types.Act`, in normalised units; it raises a SettingsError if observations
        have other shapes. None if neither the configuration nor the caller describes
        the policy.
    normalizer: bounds of the observations and actions that it was trained with.
    config: the whole configuration of its run, plain dictionaries.
    iteration: the iteration that was saved.
    about: what the checkpoint says of itself, see `training.provenance`; empty in
        older ones.
    reads: shape and type of every entry of an observation, [To, ...]; empty if `act` is
        None.
    num_actions: how many actions of a chunk lie at or after the newest observation;
        None: all.
    """

    params: PyTree
    act: Act | None
    normalizer: Normalizer
    config: dict[str, Any]
    iteration: int
    about: Mapping[str, Any] = types.MappingProxyType({})
    reads: Mapping[str, jax.ShapeDtypeStruct] = types.MappingProxyType({})
    num_actions: int | None = None

    def __call__(
        self, obs: Observation, key: Array | None = None, *, deterministic: bool = True
    ) -> np.ndarray:
        """The chunk of actions for one observation, all in the units of the task.

        Args:
            obs: [Do], or [To, Do] with a history, the newest last; or a mapping with
                `state` of this shape and, for policies that see, `rgb` [H, W, C] or
                [T, H, W, C] uint8, of whose T frames the newest ones are read.
            key: of the random numbers. None: always the same, so that the same
                observation gives the same actions. (Also deterministic chains start
                from noise.)
            deterministic: False explores, as the roll-outs of training do.

        Returns:
            [Ta, Da], to be executed in this order; `Controller` executes them.

        Raises:
            SettingsError: an observation of another shape, or one that is not finite.
        """
        entries = as_entries(obs, self.reads)
        for name, like in self.reads.items():
            if entries[name].ndim == len(like.shape) - 1 and like.shape[0] == 1:
                entries[name] = entries[name][None]
            if name != "state":
                entries[name] = entries[name][-like.shape[0] :]
            _check_entry(name, entries[name], like.shape)
        key = jax.random.key(0) if key is None else key
        return self.sample(key, entries, deterministic=deterministic)

    def sample(
        self, key: Array, obs: Mapping[str, np.ndarray], *, deterministic: bool
    ) -> np.ndarray:
        """As a call, for entries [To, ...] that need no check."""
        if self.act is None:
            raise SettingsError(
                "this run was written without a configuration; pass load_policy the "
                "policy that was trained."
            )
        act: Any = self.act
        chunk = _chunk_program(act)(
            self.params, self.normalizer, key, obs, deterministic=deterministic
        )
        # Cut on the host: a slice on the device is another program in every call.
        return np.asarray(chunk)[: self.num_actions]


def chunk_in_task_units(act: Any) -> Callable[..., Array]:
    """Make (params, normalizer, key, obs [To, ...], deterministic=) -> chunk [Ta, Da].

    Observations and actions are in the units of the task; `act` is a `types.Act`.
    """

    def run(
        params: PyTree,
        normalizer: Normalizer,
        key: Array,
        obs: Obs,
        *,
        deterministic: bool,
    ) -> Array:
        obs = {**obs, "state": policy_obs(normalizer, obs["state"])}
        batch = {name: x[None] for name, x in obs.items()}
        action, _ = act(params, key[None], batch, deterministic=deterministic)
        return unnormalize_action(normalizer, action[0])

    return run


def with_constants(
    policy: LoadedPolicy, *, deterministic: bool
) -> Callable[[Array, Obs], Array]:
    """Make (key, obs [To, ...]) -> actions [n, Da] in task units, to be exported.

    The parameters are NumPy arrays, so they become constants of the program.

    Raises:
        SettingsError: a policy without `act`.
    """
    if policy.act is None:
        raise SettingsError(
            "this run was written without a configuration, so nothing describes the "
            "function of its policy; pass load_policy the policy that was trained."
        )
    sample = chunk_in_task_units(policy.act)
    params = jax.tree.map(np.asarray, policy.params)

    def run(key: Array, obs: Obs) -> Array:
        chunk = sample(params, policy.normalizer, key, obs, deterministic=deterministic)
        return chunk[: policy.num_actions]

    return run


@functools.lru_cache(maxsize=8)
def _chunk_program(act: Any) -> Callable[..., Array]:
    """Compile `chunk_in_task_units`, once for each policy."""
    return jax.jit(chunk_in_task_units(act), static_argnames="deterministic")


def as_entries(
    obs: Observation, reads: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, np.ndarray]:
    """The entries of an observation that a policy reads, with their types.

    Raises:
        SettingsError: an entry is missing or not finite, or an image is not uint8.
    """
    given = obs if isinstance(obs, Mapping) else {"state": obs}
    missing = [name for name in reads if name not in given]
    if missing:
        raise SettingsError(
            f"the observation lacks {', '.join(missing)}; this policy reads "
            f"{', '.join(reads)}."
        )
    entries = {}
    for name, like in reads.items():
        x = np.asarray(given[name])
        if like.dtype == np.uint8 and x.dtype != np.uint8:
            raise SettingsError(
                f"obs[{name!r}] has type {x.dtype}; pass uint8, 0 to 255."
            )
        entries[name] = x.astype(like.dtype)
    for name, x in entries.items():
        if not np.isfinite(x).all():
            raise SettingsError(
                f"obs[{name!r}] has entries that are not finite: {x}; stop the robot, "
                "and check its sensors."
            )
    return entries


def _check_entry(name: str, x: np.ndarray, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise SettingsError(
            f"obs[{name!r}] has shape {list(x.shape)}; this policy takes "
            f"{list(shape)}: the observations of its history, the newest last, or one "
            "without this axis if the history is 1. Controller keeps the history."
        )


def load_policy(
    run_dir: str | os.PathLike,
    checkpoint: int | str = "latest",
    *,
    policy: Any = None,
    model: Mapping[str, Any] | None = None,
    acting: Mapping[str, Any] | None = None,
    history: int | None = None,
) -> LoadedPolicy:
    """Read a policy from a run directory and rebuild its `act`.

    Args:
        checkpoint: an iteration, "latest" or "best".
        policy: the policy that was trained, with `init` and `act`; needed if
            `dppo_jax.train` wrote the run without a configuration. None: make it from
            `model`.
        model: settings `config.model` of `experiments.defaults` to use instead of the
            saved ones, for example to sample in another way. None: those of
            `config.json`; if that has none, `act` is None and the parameters are
            nested dictionaries.
        acting: settings `config.algorithm.NAME` of an algorithm that acts with a critic
            to use instead of the saved ones, for example to choose among fewer chunks.
        history: To. None: `env.history` of `config.json`, or else 1.

    Raises:
        SettingsError: no such run, nothing saved yet, no such checkpoint, a damaged
            one, or parameters that do not match the given or configured policy.
    """
    saved = read_policy(run_dir, checkpoint)
    cure = "pass the policy that was trained, and its history."
    # Without a `model` the settings are not those of `experiments.defaults`.
    if "model" in saved.config:
        check_types(run_dir, saved.config, policies.defaults_of(saved.config))
    if policy is None:
        cure = "restore the config.json that it was trained with."
        policy = _configured(saved, model, acting, run_dir)
    if policy is None:
        return LoadedPolicy(act=None, **saved._asdict())
    if history is None:
        env = saved.config.get("env")
        history = env.get("history", 1) if isinstance(env, dict) else 1
    obs = policies.obs_like(
        saved.config.get("model") if model is None else model,
        history=history,
        obs_dim=len(saved.normalizer.obs_min),
    )
    expected = jax.eval_shape(policy.init, jax.random.key(0), obs)
    check_matches(
        saved.params,
        optional_as(expected, saved.params),
        what=f"the policy of {run_dir}",
        cure=cure,
    )
    params = with_types(saved.params, expected)
    act = _checking(policy.act, obs)
    reads = {
        name: jax.ShapeDtypeStruct(like.shape[1:], like.dtype)
        for name, like in obs.items()
    }
    settings = saved.config.get("model") if model is None else model
    return LoadedPolicy(
        act=act,
        reads=reads,
        num_actions=policies.num_executable(settings) if settings else None,
        **saved._replace(params=params)._asdict(),
    )


def _checking(act: Act, example: Mapping[str, Any]) -> Act:
    """`act` that refuses observations of other shapes than an example [1, ...]."""

    @functools.wraps(act)
    def checked(params: PyTree, keys: Array, obs: Obs, **options: Any) -> Any:
        for name, like in example.items():
            found = None if name not in obs else np.shape(obs[name])
            # An encoder of images reads the newest of at least as many frames.
            if found is None or (
                found[1:] != like.shape[1:]
                if name == "state"
                else found[2:] != like.shape[2:] or found[1] < like.shape[1]
            ):
                wanted = ", ".join(("B", *map(str, like.shape[1:])))
                raise SettingsError(
                    f"obs[{name!r}] has shape {found}; this policy takes [{wanted}]: a "
                    "batch, then the observations of its history, the newest last."
                )
        return act(params, keys, obs, **options)

    return checked


def _configured(
    saved: SavedPolicy,
    model: Mapping[str, Any] | None,
    acting: Mapping[str, Any] | None,
    run_dir: str | os.PathLike,
) -> Any:
    """Make what acts by `model` or the saved configuration; None without both."""
    model = saved.config.get("model") if model is None else model
    if model is None:
        return None
    action_dim = len(saved.normalizer.action_min)
    try:
        policy = policies.make_saved_policy(model, action_dim=action_dim)
    except (AttributeError, KeyError) as error:
        raise SettingsError(
            f"the settings `model` of {run_dir} are incomplete ({error}); give all of "
            "dppo_jax.policies.default_config, or pass the policy that was trained."
        ) from error
    found = algorithms.find_acting(saved.params)
    if found is None:
        return policy
    name, instead = found
    section = saved.config.get("algorithm") or {}
    check_types(run_dir, section, algorithms.default_config(), "algorithm.")
    if acting is not None:
        section = {**section, name: acting}
    config = {**saved.config, "model": model, "algorithm": section}
    try:
        return instead.make(policy, config, action_dim=action_dim)
    except KeyError as error:
        raise SettingsError(
            f"the settings algorithm.{name} or critic of {run_dir} are incomplete "
            f"({error}); restore its config.json, or pass the policy that was trained."
        ) from error
