"""Orbax checkpoints: policy, normaliser and config together, training state apart.

A run directory holds `config.json` and `checkpoints/<iteration>/` with the items
`policy` (what another stage, or a robot, needs) and `state` (what resuming needs). A
policy that was trained elsewhere has no `state`, but may have a `critic`. Beside them
`best/<iteration>/` may hold the `policy` with the highest score.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from dppo_jax.errors import SettingsError
from dppo_jax.normalize import Normalizer
from dppo_jax.training.config_file import CONFIG_FILE, load_config
from dppo_jax.training.trees import check_matches, from_storable, plain, storable
from dppo_jax.types import PyTree

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
                state=ocp.args.StandardSave(storable(state)),
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
            SettingsError: a state of other shapes, naming the first that differs, or a
                damaged checkpoint.
        """
        step = self.latest if iteration is None else iteration
        if step is None:
            raise SettingsError("there is no checkpoint to restore; start afresh.")
        with _named(self._manager, step):
            saved = self._manager.item_metadata(step)["state"]
            if saved is None:
                raise KeyError("no state")
        check_matches(
            saved,
            storable(like),
            what="the saved training state",
            cure="use the settings of the interrupted run, or another run directory.",
        )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, storable(like))
        with _named(self._manager, step):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )
        return from_storable(restored["state"], like)


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
        SettingsError: no such run, nothing saved yet, no such checkpoint, or a damaged
            one.
    """
    run_dir = Path(run_dir).absolute()
    config = load_config(run_dir)
    if config is None:
        raise SettingsError(
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


def load_critic(
    run_dir: str | os.PathLike, checkpoint: int | str = "latest"
) -> PyTree | None:
    """The critic that was saved beside a policy; None where there is none.

    It is the `critic` of a policy from elsewhere, or the `critic_params` of a training
    state.

    Raises:
        SettingsError: as `read_policy`.
    """
    critic, _ = _load_item(run_dir, "critic", checkpoint)
    if critic is None:
        state, _ = _load_item(run_dir, "state", checkpoint)
        critic = (state or {}).get("critic_params")
    if critic is not None and "q1" in critic.get("params", {}):  # V(s) in older runs.
        critic = {"params": {"value": critic["params"]["q1"]}}
    return critic


def _policy_item(params: PyTree, normalizer: Normalizer, **more: Any) -> Any:
    policy = {"params": params, "normalizer": normalizer} | more
    return ocp.args.StandardSave(plain(storable(policy)))


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
        raise SettingsError(nothing)
    with _manager(run_dir, folder) as manager:
        steps = sorted(manager.all_steps())
        if not steps:
            raise SettingsError(nothing)
        named = checkpoint in ("latest", "best")
        step = steps[-1] if named else _as_int(checkpoint)
        if step not in steps:
            raise SettingsError(
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
        raise SettingsError(
            f"{manager.directory / str(step)} is damaged, remove it to go back to the "
            f"checkpoint before it: {error}"
        ) from error


def _manager(
    run_dir: str | os.PathLike, folder: str = _CHECKPOINTS, **options: Any
) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        Path(run_dir).absolute() / folder,
        options=ocp.CheckpointManagerOptions(**options),
        # Named in advance, so that a fresh process knows how to read them.
        item_handlers={name: ocp.StandardCheckpointHandler() for name in _ITEMS},
    )
