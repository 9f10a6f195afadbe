"""Orbax checkpoints: policy, normaliser and config together, training state apart.

A run directory holds `config.json` and `checkpoints/<iteration>/` with the items
`policy` (what another stage, or a robot, needs) and `state` (what resuming needs). A
policy that was trained elsewhere has no `state`, but may have a `critic`. Beside them
`best/<iteration>/` may hold the `policy` with the highest score.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from dppo_jax.normalize import Normalizer
from dppo_jax.training.old_settings import updated
from dppo_jax.types import PyTree

CONFIG_FILE = "config.json"
_CHECKPOINTS, _BEST = "checkpoints", "best"
_ITEMS = ("policy", "state", "critic")


class SavedPolicy(NamedTuple):
    """What acts, as it was saved.

    params: nested dictionaries; `with_types` gives them the types of a policy.
    normalizer: bounds of observations and actions it was trained with.
    config: the whole configuration of its run, plain dictionaries.
    iteration: when it was saved.
    """

    params: PyTree
    normalizer: Normalizer
    config: dict[str, Any]
    iteration: int


class Checkpoints:
    """The `checkpoints/` folder of one run; use as a context manager.

    Saving is asynchronous: arrays are copied to the host at once, written behind
    the next iteration, and a checkpoint becomes visible only when it is complete.
    """

    def __init__(self, run_dir: str | os.PathLike, *, keep: int | None = 3) -> None:
        self._manager = _manager(run_dir, max_to_keep=keep, create=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is still being written."""
        self._manager.close()

    @property
    def all(self) -> list[int]:
        """Iterations of all complete checkpoints, the newest last."""
        return sorted(self._manager.all_steps())

    @property
    def latest(self) -> int | None:
        """Iteration of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(
        self,
        iteration: int,
        state: PyTree,
        params: PyTree,
        normalizer: Normalizer,
    ) -> None:
        """Write one checkpoint; an iteration that is there already is left alone.

        Args:
            params: what acts, any pytree.
        """
        if iteration == self.latest:
            return
        self._manager.save(
            iteration,
            args=ocp.args.Composite(
                policy=_policy_item(params, normalizer),
                state=ocp.args.StandardSave(_storable(state)),
            ),
        )

    def save_policy(
        self,
        iteration: int,
        params: PyTree,
        normalizer: Normalizer,
        critic: PyTree | None = None,
    ) -> None:
        """Write a checkpoint of a policy that was trained elsewhere.

        Args:
            critic: parameters of its value network, if there are any.
        """
        items = {"policy": _policy_item(params, normalizer)}
        if critic is not None:
            items["critic"] = ocp.args.StandardSave(jax.tree.map(np.asarray, critic))
        self._manager.save(iteration, args=ocp.args.Composite(**items))

    def forget(self, iterations: Iterable[int]) -> None:
        """Remove the checkpoints of these iterations."""
        for iteration in iterations:
            self._manager.delete(iteration)

    def restore(self, like: PyTree, iteration: int | None = None) -> PyTree:
        """A training state, the newest if no other, in the structure of `like`.

        Raises:
            ValueError: a state of other shapes, naming the first that differs, or a
                damaged checkpoint.
        """
        step = self.latest if iteration is None else iteration
        if step is None:
            raise ValueError("there is no checkpoint to restore; start afresh.")
        with _named(self._manager, step):
            saved = self._manager.item_metadata(step)["state"]
            if saved is None:
                raise KeyError("no state")
        check_matches(
            saved,
            _storable(like),
            what="the saved training state",
            cure="use the settings of the interrupted run, or another run directory.",
        )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _storable(like))
        with _named(self._manager, step):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )
        return _restored(restored["state"], like)


def has_checkpoint(run_dir: str | os.PathLike) -> bool:
    """Whether a run has a complete checkpoint; unfinished ones have other names."""
    folder = Path(run_dir) / _CHECKPOINTS
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


class Best:
    """The `best/` folder of one run: what acted when a number was highest.

    Args:
        name: of the number; one that was kept by another name counts for nothing.
    """

    def __init__(self, run_dir: str | os.PathLike, name: str) -> None:
        self._name = np.frombuffer(name.encode(), np.uint8)
        self._manager = _manager(run_dir, _BEST, max_to_keep=1, create=True)
        self._score = -np.inf
        step = self._manager.latest_step()
        if step is not None:
            with _named(self._manager, step):
                item = self._manager.restore(
                    step, args=ocp.args.Composite(policy=ocp.args.StandardRestore())
                )
            if np.array_equal(item["policy"]["score_name"], self._name):
                self._score = float(item["policy"]["score"])

    def close(self) -> None:
        """Wait for what is still being written."""
        self._manager.close()

    def is_beaten_by(self, score: float) -> bool:
        """Whether `score` is higher than any before; NaN is not."""
        return score > self._score

    def save(
        self, iteration: int, params: PyTree, normalizer: Normalizer, *, score: float
    ) -> None:
        """Put these parameters in place of those kept so far."""
        self._score = score
        # A run that went back to an earlier checkpoint comes by the same iteration.
        if iteration in self._manager.all_steps():
            self._manager.delete(iteration)
        self._manager.save(
            iteration,
            args=ocp.args.Composite(
                policy=_policy_item(
                    params,
                    normalizer,
                    score=np.asarray(score),
                    score_name=self._name,
                )
            ),
            # Its iteration may lie before that of what it replaces.
            force=True,
        )


def read_policy(
    run_dir: str | os.PathLike, checkpoint: int | str = "latest"
) -> SavedPolicy:
    """Read what acts from a run directory.

    Args:
        checkpoint: an iteration, "latest" or "best".

    Raises:
        ValueError: no such run, nothing saved yet, no such checkpoint, or a damaged
            one.
    """
    run_dir = Path(run_dir).absolute()
    config = load_config(run_dir)
    if config is None:
        raise ValueError(
            f"{run_dir} is not a run directory (no {CONFIG_FILE}); pass the directory "
            "that experiments.pretrain, experiments.finetune or dppo_jax.train wrote."
        )
    item, step = _load_item(run_dir, "policy", checkpoint)
    return SavedPolicy(
        params=item["params"],
        normalizer=Normalizer(**item["normalizer"]),
        config=config,
        iteration=step,
    )


def with_types(saved: PyTree, like: Any) -> PyTree:
    """Give nested dictionaries the types of `like`, named tuples above all.

    A field that `like` leaves at None may be there or not.
    """
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        fields = {k: with_types(saved[k], getattr(like, k)) for k in saved}
        return type(like)(**fields)
    if isinstance(like, Mapping):
        return {k: with_types(saved[k], like[k]) for k in saved}
    if isinstance(like, (tuple, list)):
        return type(like)(with_types(s, x) for s, x in zip(saved, like, strict=True))
    return saved


def optional_as(like: PyTree, saved: PyTree) -> PyTree:
    """`like` with those of its parts that are None taken from `saved`.

    Such a part may be there or not, as the number of steps left where K' is annealed.
    Other differences stay, for `check_matches` to refuse.
    """
    if like is None:
        return saved
    fields = getattr(like, "_fields", None)
    if fields is not None:
        parts = (optional_as(getattr(like, k), _part(saved, k)) for k in fields)
        return type(like)(*parts)
    if isinstance(like, Mapping):
        return {k: optional_as(x, _part(saved, k)) for k, x in like.items()}
    return like


def _part(tree: PyTree, name: str) -> PyTree:
    """The part of a mapping or a named tuple; None where there is none."""
    return tree.get(name) if isinstance(tree, Mapping) else getattr(tree, name, None)


def load_critic(
    run_dir: str | os.PathLike, checkpoint: int | str = "latest"
) -> PyTree | None:
    """The critic that was saved beside a policy; None where there is none.

    It is the `critic` of a policy from elsewhere, or the `critic_params` of a training
    state.

    Raises:
        ValueError: as `read_policy`.
    """
    critic, _ = _load_item(run_dir, "critic", checkpoint)
    if critic is None:
        state, _ = _load_item(run_dir, "state", checkpoint)
        critic = (state or {}).get("critic_params")
    if critic is not None and "q1" in critic.get("params", {}):  # V(s) in older runs.
        critic = {"params": {"value": critic["params"]["q1"]}}
    return critic


def check_matches(params: PyTree, expected: PyTree, *, what: str, cure: str) -> None:
    """Refuse parameters whose names or shapes differ from `expected`.

    Raises:
        ValueError: naming the first that differs, what it belongs to and the cure.
    """
    found, wanted = _shapes(params), _shapes(expected)
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"{what} does not match the configured one: {name} has shape "
                f"{found.get(name, 'none')}, expected {wanted.get(name, 'none')}; "
                f"{cure}"
            )


def load_config(run_dir: str | os.PathLike) -> dict[str, Any] | None:
    """The configuration of a run with the names of today; None where there is none."""
    path = Path(run_dir) / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); restore it.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no settings; restore it.")
    return updated(config)


def save_config(run_dir: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Write `config.json`, whole or not at all.

    Raises:
        ValueError: settings that are not plain.
    """
    try:
        text = json.dumps(config, indent=2, sort_keys=True)
    except TypeError as error:
        raise ValueError(
            f"the configuration of {run_dir} cannot be written as JSON ({error}); pass "
            "plain dictionaries, such as config.to_dict()."
        ) from None
    path = Path(run_dir) / CONFIG_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n")
    temporary.replace(path)


def _policy_item(params: PyTree, normalizer: Normalizer, **more: Any) -> Any:
    policy = {"params": params, "normalizer": normalizer} | more
    return ocp.args.StandardSave(_plain(_storable(policy)))


def _plain(tree: PyTree) -> PyTree:
    """Nested dictionaries and lists of NumPy arrays, without fields that are None."""
    if isinstance(tree, tuple) and hasattr(tree, "_asdict"):
        tree = tree._asdict()
    if isinstance(tree, Mapping):
        return {name: _plain(x) for name, x in tree.items() if x is not None}
    if isinstance(tree, (tuple, list)):
        return [_plain(x) for x in tree]
    return np.asarray(tree)


def _load_item(
    run_dir: str | os.PathLike, name: str, checkpoint: int | str
) -> tuple[Any, int]:
    """An item of a checkpoint as nested dictionaries, and its iteration.

    Every checkpoint has a `policy`; another item is None where there is none.
    """
    folder = _BEST if checkpoint == "best" else _CHECKPOINTS
    nothing = f"{run_dir} holds no checkpoint yet; let its run go on first."
    if folder == _BEST:
        nothing = (
            f"{run_dir} has no checkpoint 'best'; it is kept where evaluations are "
            "made on the way. Take 'latest' or an iteration."
        )
    if not (Path(run_dir) / folder).is_dir():
        raise ValueError(nothing)
    with _manager(run_dir, folder) as manager:
        steps = sorted(manager.all_steps())
        if not steps:
            raise ValueError(nothing)
        named = checkpoint in ("latest", "best")
        step = steps[-1] if named else _as_int(checkpoint)
        if step not in steps:
            raise ValueError(
                f"{run_dir} has no checkpoint {checkpoint!r}; it has {steps}, 'latest' "
                "and perhaps 'best'."
            )
        if name != "policy" and not (manager.directory / str(step) / name).exists():
            return None, step
        with _named(manager, step):
            like = None
            if name == "state":  # Any number of devices may have saved it.
                like = _on_one_device(manager.item_metadata(step)[name])
            item = manager.restore(
                step,
                args=ocp.args.Composite(**{name: ocp.args.StandardRestore(like)}),
            )[name]
    return item, step


def _as_int(checkpoint: int | str) -> int:
    """An iteration; -1, which no checkpoint has, for what is none."""
    try:
        return int(checkpoint)
    except ValueError:
        return -1


def _on_one_device(tree: PyTree) -> PyTree:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree
    )


@contextlib.contextmanager
def _named(manager: ocp.CheckpointManager, step: int) -> Iterator[None]:
    """Say which checkpoint is damaged; Orbax names a file or a key inside it."""
    try:
        yield
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"{manager.directory / str(step)} is damaged, remove it to go back to the "
            f"checkpoint before it: {error}"
        ) from error


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(_name(key) for key in path): tuple(leaf.shape) for path, leaf in leaves
    }


def _name(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def _manager(
    run_dir: str | os.PathLike, folder: str = _CHECKPOINTS, **options: Any
) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        Path(run_dir).absolute() / folder,
        options=ocp.CheckpointManagerOptions(**options),
        # Named in advance, so that a fresh process knows how to read them.
        item_handlers={name: ocp.StandardCheckpointHandler() for name in _ITEMS},
    )


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _storable(tree: PyTree) -> PyTree:
    """What every file format knows: random keys as integers, nothing empty."""

    def store(leaf: Any) -> Any:
        if _is_key(leaf):
            return jax.random.key_data(leaf)
        return leaf if leaf.size else np.zeros(1, leaf.dtype)

    return jax.tree.map(store, tree)


def _restored(tree: PyTree, like: PyTree) -> PyTree:
    """Undo `_storable`, with the leaves of `like` for what it could not keep."""

    def restore(leaf: Any, like: Any) -> Any:
        if _is_key(like):
            return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like))
        return leaf if like.size else like

    return jax.tree.map(restore, tree, like)
