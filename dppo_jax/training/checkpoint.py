"""Orbax checkpoints, which save a policy and a training state as separate items.

A run directory holds `config.json` and `checkpoints/<iteration>/` with the items
`policy` (parameters and bounds, for other stages and deployment) and `state` (for
resuming). A policy that was trained elsewhere has no `state`, but may have a `critic`.
`best/<iteration>/` may hold the `policy` with the highest score.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from dppo_jax.errors import SettingsError
from dppo_jax.normalize import Normalizer
from dppo_jax.training.config_file import CONFIG_FILE, load_config, runs_inside
from dppo_jax.training.trees import check_matches, from_storable, plain, storable
from dppo_jax.types import PyTree

CHECKPOINTS, BEST = "checkpoints", "best"
_ITEMS = ("policy", "state", "critic")


class SavedPolicy(NamedTuple):
    """A policy as it was saved.

    params: nested dictionaries; `with_types` gives them the types of a policy.
    normalizer: bounds of the observations and actions that it was trained with.
    config: the whole configuration of its run, plain dictionaries.
    iteration: the iteration that was saved.
    """

    params: PyTree
    normalizer: Normalizer
    config: dict[str, Any]
    iteration: int


class Checkpoints:
    """The `checkpoints/` folder of one run; use as a context manager.

    Saving is asynchronous: arrays are copied to the host at once and written while the
    next iteration runs. A checkpoint becomes visible only when it is complete.
    """

    def __init__(self, run_dir: str | os.PathLike, *, keep: int | None = 3) -> None:
        self._manager = _manager(run_dir, max_to_keep=keep, create=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def close(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: it cannot be written.
        """
        with _writing(self._manager):
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
        """Write one checkpoint, unless `iteration` is the newest one already.

        Args:
            params: the parameters that act, any pytree.

        Raises:
            OSError: this checkpoint or the one before it cannot be written, for example
                because the disk is full. Those before stay valid.
        """
        if iteration == self.latest:
            return
        items = ocp.args.Composite(
            policy=_policy_item(params, normalizer),
            state=ocp.args.StandardSave(storable(state)),
        )
        with _writing(self._manager):
            self._manager.save(iteration, args=items)

    def save_policy(
        self,
        iteration: int,
        params: PyTree,
        normalizer: Normalizer,
        critic: PyTree | None = None,
    ) -> None:
        """Write a checkpoint of a policy that was trained elsewhere.

        Args:
            critic: parameters of its critic; None: there are none.
        """
        items = {"policy": _policy_item(params, normalizer)}
        if critic is not None:
            items["critic"] = ocp.args.StandardSave(jax.tree.map(np.asarray, critic))
        with _writing(self._manager):
            self._manager.save(iteration, args=ocp.args.Composite(**items))

    def forget(self, iterations: Iterable[int]) -> None:
        """Remove the checkpoints of these iterations."""
        for iteration in iterations:
            self._manager.delete(iteration)

    def restore(self, like: PyTree, iteration: int | None = None) -> PyTree:
        """Read the training state of an iteration in the structure of `like`.

        Args:
            iteration: None: the newest one.

        Raises:
            SettingsError: a damaged checkpoint, or other shapes; the message names the
                first that differs.
        """
        step = self.latest if iteration is None else iteration
        if step is None:
            raise SettingsError("there is no checkpoint to restore; start a new run.")
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
    """Whether a run has a complete checkpoint."""
    return newest_checkpoint(run_dir) is not None


def newest_checkpoint(run_dir: str | os.PathLike) -> int | None:
    """The iteration of the newest complete checkpoint; only these are numbers."""
    names = [path.name for path in Path(run_dir, CHECKPOINTS).glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=None)


class Best:
    """The `best/` folder of one run: the policy whose score was highest.

    Args:
        name: name of the score. A saved policy with another name is replaced at the
            first score.
    """

    def __init__(self, run_dir: str | os.PathLike, name: str) -> None:
        self._name = np.frombuffer(name.encode(), np.uint8)
        self._manager = _manager(run_dir, BEST, max_to_keep=1, create=True)
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
        """Wait until everything is written.

        Raises:
            OSError: it cannot be written.
        """
        with _writing(self._manager):
            self._manager.close()

    def clear(self) -> None:
        """Remove what is saved."""
        for step in self._manager.all_steps():
            self._manager.delete(step)
        self._score = -np.inf

    def is_beaten_by(self, score: float) -> bool:
        """Whether `score` is higher than all before; False for NaN."""
        return score > self._score

    def save(
        self, iteration: int, params: PyTree, normalizer: Normalizer, *, score: float
    ) -> None:
        """Replace the saved parameters by these."""
        self._score = score
        # A run that resumed from an earlier checkpoint repeats iterations.
        if iteration in self._manager.all_steps():
            self._manager.delete(iteration)
        item = _policy_item(
            params, normalizer, score=np.asarray(score), score_name=self._name
        )
        with _writing(self._manager):
            # Save even if the replaced policy has a later iteration.
            self._manager.save(
                iteration, args=ocp.args.Composite(policy=item), force=True
            )


def read_policy(
    run_dir: str | os.PathLike, checkpoint: int | str = "latest"
) -> SavedPolicy:
    """Read a policy from a run directory.

    Args:
        checkpoint: an iteration, "latest" or "best".

    Raises:
        SettingsError: no such run, nothing saved yet, no such checkpoint, or a damaged
            one.
    """
    run_dir = Path(run_dir).absolute()
    config = load_config(run_dir)
    if config is None:
        runs = runs_inside(run_dir)
        known = "experiments.pretrain, experiments.finetune or dppo_jax.train wrote"
        cure = f"pass one of {', '.join(runs)}" if runs else f"pass one that {known}"
        raise SettingsError(
            f"{run_dir} is not a run directory (no {CONFIG_FILE}); {cure}."
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
    """Read the critic that was saved with a policy; None if there is none.

    It is the item `critic` of a policy that was trained elsewhere, or `critic_params`
    of a training state.

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
    """Read an item of a checkpoint as nested dictionaries, and its iteration.

    Every checkpoint has a `policy`; another item is None if the checkpoint lacks it.
    """
    folder = BEST if checkpoint == "best" else CHECKPOINTS
    nothing = f"{run_dir} holds no checkpoint yet; resume its run first."
    if folder == BEST:
        nothing = (
            f"{run_dir} has no checkpoint 'best', because its run set no keep_best or "
            "made no evaluation; use 'latest' or an iteration."
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
    """Convert to an iteration; -1, which no checkpoint has, for other strings."""
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
def _writing(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Turn an error of Orbax that came from the file system into an OSError.

    Orbax writes in threads, and reports their errors in a later call, as ValueError.
    """
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(
            number,
            f"a checkpoint could not be written ({os.strerror(number)}); earlier ones "
            "are complete. Make room, and start the same command again",
            str(manager.directory),
        ) from error


@contextlib.contextmanager
def _named(manager: ocp.CheckpointManager, step: int) -> Iterator[None]:
    """Raise errors of Orbax, which name only a file or key, with the checkpoint."""
    try:
        yield
    except (KeyError, ValueError, OSError) as error:
        raise SettingsError(
            f"{manager.directory / str(step)} is damaged, remove it to use the "
            f"checkpoint before it: {error}"
        ) from error


def _manager(
    run_dir: str | os.PathLike, folder: str = CHECKPOINTS, **options: Any
) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        Path(run_dir).absolute() / folder,
        options=ocp.CheckpointManagerOptions(**options),
        # Name the items in advance, so that a new process knows how to read them.
        item_handlers={name: ocp.StandardCheckpointHandler() for name in _ITEMS},
    )
