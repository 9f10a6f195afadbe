"""Orbax checkpoints, which save a policy and a training state as separate items.

A run directory holds `config.json` and `checkpoints/<iteration>/` with the items
`policy` (parameters and bounds, for other stages and deployment) and `state` (for
resuming). A policy that was trained elsewhere has no `state`, but may have a `critic`.
`best/<iteration>/` may hold the `policy` with the highest score. Each also records the
versions and the device that wrote it (`provenance`), and the entries of its run.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from dppo_jax.errors import SettingsError
from dppo_jax.normalize import Normalizer
from dppo_jax.training import added_leaves, left_out
from dppo_jax.training.config_file import CONFIG_FILE, load_config, runs_inside
from dppo_jax.training.orbax_manager import (
    naming,
    open_manager,
    read_about,
    restore_plain,
    writing,
)
from dppo_jax.training.provenance import provenance
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
    about: the record of the checkpoint, see `provenance`; empty in older ones.
    """

    params: PyTree
    normalizer: Normalizer
    config: dict[str, Any]
    iteration: int
    about: dict[str, Any]


class Checkpoints:
    """The `checkpoints/` folder of one run; use as a context manager.

    Saving is asynchronous: arrays are copied to the host at once and written while the
    next iteration runs. A checkpoint becomes visible only when it is complete.
    """

    def __init__(self, run_dir: str | os.PathLike, *, keep: int | None = 3) -> None:
        self._manager = open_folder(run_dir, CHECKPOINTS, max_to_keep=keep, create=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def close(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: it cannot be written.
        """
        with writing(self._manager):
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
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one checkpoint, unless `iteration` is the newest one already.

        Args:
            params: the parameters that act, any pytree.
            about: what to record beside the `provenance`, values that JSON can hold.

        Raises:
            OSError: this checkpoint or the one before it cannot be written, for example
                because the disk is full. Those before stay valid.
        """
        if iteration == self.latest:
            return
        items = ocp.args.Composite(
            policy=policy_item(params, normalizer),
            state=ocp.args.StandardSave(storable(state)),
        )
        with writing(self._manager, begins=True):
            self._manager.save(iteration, args=items, custom_metadata=described(about))

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
        items = {"policy": policy_item(params, normalizer)}
        if critic is not None:
            items["critic"] = ocp.args.StandardSave(jax.tree.map(np.asarray, critic))
        with writing(self._manager, begins=True):
            self._manager.save(
                iteration,
                args=ocp.args.Composite(**items),
                custom_metadata=described(None),
            )

    def forget(self, iterations: Iterable[int]) -> None:
        """Remove the checkpoints of these iterations."""
        for iteration in iterations:
            self._manager.delete(iteration)

    def about(self, iteration: int) -> dict[str, Any]:
        """The record of the checkpoint of an iteration, see `provenance`.

        Raises:
            SettingsError: its format is newer than this package.
        """
        return read_about(self._manager, iteration)

    def normalizer(self, iteration: int) -> Normalizer:
        """The bounds that were saved with the policy of an iteration."""
        return Normalizer(**read_policy_item(self._manager, iteration)["normalizer"])

    def restore(
        self,
        like: PyTree,
        iteration: int | None = None,
        *,
        dispensable: Sequence[str] = (),
    ) -> PyTree:
        """Read the training state of an iteration in the structure of `like`.

        Args:
            iteration: None: the newest one.
            dispensable: fields of `like` that stay as they are if the checkpoint lacks
                them; a note says so.

        Raises:
            SettingsError: a damaged checkpoint, or other shapes; the message names the
                first that differs.
        """
        step = self.latest if iteration is None else iteration
        if step is None:
            raise SettingsError("there is no checkpoint to restore; start a new run.")
        self.about(step)  # Refuses a later format.
        with naming(self._manager, step):
            saved = self._manager.item_metadata(step)["state"]
            if saved is None:
                raise KeyError("no state")
        missing = left_out.lacking(saved, like, dispensable)
        if missing:
            left_out.note(str(self._manager.directory / str(step)), missing)
            like, _ = left_out.leave_out(like, list(missing))
        whole, is_older = like, added_leaves.are_lacking(saved, storable(like))
        if is_older:
            like = added_leaves.without_added(like)
        check_matches(
            saved,
            storable(like),
            what="the saved training state",
            cure="use the settings of the interrupted run, or another run directory.",
        )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, storable(like))
        with naming(self._manager, step):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )
        state = from_storable(restored["state"], like)
        if is_older:
            state = added_leaves.with_added(state, whole)
        return state._replace(**missing) if missing else state


def has_checkpoint(run_dir: str | os.PathLike) -> bool:
    """Whether a run has a complete checkpoint."""
    return newest_checkpoint(run_dir) is not None


def newest_checkpoint(run_dir: str | os.PathLike) -> int | None:
    """The iteration of the newest complete checkpoint; only these are numbers."""
    names = [path.name for path in Path(run_dir, CHECKPOINTS).glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=None)


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
    item, step, about = _load_item(run_dir, "policy", checkpoint)
    there = set(item.get("normalizer", ()))
    if "params" not in item or there != set(Normalizer._fields):
        raise SettingsError(
            f"checkpoint {step} of {run_dir} is damaged: its policy lacks parameters "
            "or bounds; remove it to use the checkpoint before it, if there is one."
        )
    return SavedPolicy(
        params=item["params"],
        normalizer=Normalizer(**item["normalizer"]),
        config=config,
        iteration=step,
        about=about,
    )


def read_state(
    run_dir: str | os.PathLike, checkpoint: int | str = "latest"
) -> PyTree | None:
    """Read a training state as nested dictionaries, on one device; None without one.

    Raises:
        SettingsError: as `read_policy`.
    """
    state, *_ = _load_item(run_dir, "state", checkpoint)
    return state


def load_critic(
    run_dir: str | os.PathLike, checkpoint: int | str = "latest"
) -> PyTree | None:
    """Read the critic that was saved with a policy; None if there is none.

    It is the item `critic` of a policy that was trained elsewhere, or `critic_params`
    of a training state.

    Raises:
        SettingsError: as `read_policy`.
    """
    critic, *_ = _load_item(run_dir, "critic", checkpoint)
    if critic is None:
        critic = (read_state(run_dir, checkpoint) or {}).get("critic_params")
    if critic is not None and "q1" in critic.get("params", {}):  # V(s) in older runs.
        critic = {"params": {"value": critic["params"]["q1"]}}
    return critic


def saved_shapes(
    run_dir: str | os.PathLike, iteration: int
) -> dict[str, dict[str, Any]]:
    """Shapes of what a checkpoint holds beside its policy, without reading it.

    Returns:
        "state" or "critic" -> its parts by name, trees whose leaves have `shape` and
        `dtype`; empty if the folder `checkpoints` has no such iteration.
    """
    folder = Path(run_dir, CHECKPOINTS, str(iteration))
    there = [name for name in ("state", "critic") if (folder / name).is_dir()]
    if not there:
        return {}
    with open_folder(run_dir, CHECKPOINTS) as manager, naming(manager, iteration):
        items = manager.item_metadata(iteration)
        return {name: dict(items[name]) for name in there}


def open_folder(
    run_dir: str | os.PathLike, folder: str, **options: Any
) -> ocp.CheckpointManager:
    """The manager of the checkpoints in `CHECKPOINTS` or `BEST` of a run."""
    return open_manager(Path(run_dir) / folder, _ITEMS, **options)


def described(more: Mapping[str, Any] | None) -> dict[str, Any]:
    """The record of a checkpoint that is written now."""
    return provenance() | dict(more or {})


def read_policy_item(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The item `policy` as nested dictionaries."""
    read_about(manager, step)  # Refuses a later format.
    return restore_plain(manager, step, "policy")


def policy_item(params: PyTree, normalizer: Normalizer, **more: Any) -> Any:
    """What to write as the item `policy`, with further arrays by name."""
    policy = {"params": params, "normalizer": normalizer} | more
    return ocp.args.StandardSave(plain(storable(policy)))


def _load_item(
    run_dir: str | os.PathLike, name: str, checkpoint: int | str
) -> tuple[Any, int, dict[str, Any]]:
    """Read an item of a checkpoint as nested dictionaries, its iteration, its `about`.

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
    with open_folder(run_dir, folder) as manager:
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
        about = read_about(manager, step)
        if name != "policy" and not (manager.directory / str(step) / name).exists():
            return None, step, about
        if name != "state":
            return restore_plain(manager, step, name), step, about
        with naming(manager, step):
            # Any number of devices may have saved it. A replay buffer that is still
            # empty takes far less in the file, so no expansion is too large here.
            like = _on_one_device(manager.item_metadata(step)[name])
            args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
            return manager.restore(step, args=args)[name], step, about


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
