"""One Algorithm on many devices: each device steps its part of the environments.

Outside a sharded step the reductions below do not communicate. Therefore algorithms
call them without a case for one device. While a step is traced, a context variable
holds whether it is sharded.
"""

import contextvars
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dppo_jax.errors import SettingsError
from dppo_jax.types import Algorithm, Array, Metrics

Tree = TypeVar("Tree")

_AXIS = "envs"
# The values that `Algorithm.split` gives to leaves. SPLIT: the leading axis, which is
# that of environments, is split over devices. WHOLE: the leaf is replicated.
SPLIT, WHOLE = PartitionSpec(_AXIS), PartitionSpec()
_SHARDS = contextvars.ContextVar("_SHARDS", default=1)


def make_mesh(num_devices: int = 0) -> Mesh:
    """Make a one-dimensional mesh of devices, over all processes.

    Args:
        num_devices: how many devices; 0: all.

    Raises:
        SettingsError: more devices than JAX sees, or, with several processes, fewer.
    """
    there = jax.device_count()
    wanted = num_devices or there
    if not 1 <= wanted <= there:
        raise SettingsError(
            f"mesh.devices={num_devices}, but JAX sees {there} ({jax.default_backend()}"
            "); lower it, or use 0 for all."
        )
    if jax.process_count() > 1 and wanted != there:
        raise SettingsError(
            f"mesh.devices={num_devices}, but the {jax.process_count()} processes have "
            f"{there} devices and must use all of them; use 0 for all."
        )
    return jax.make_mesh(
        (wanted,),
        (_AXIS,),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:wanted],
    )


def shard(algorithm: Algorithm, mesh: Mesh) -> Algorithm:
    """Split the environments of `algorithm` over the devices of `mesh`.

    Args:
        algorithm: made for the environments and minibatches of all devices together.

    Returns:
        An Algorithm with the same random draws and, apart from rounding, the same
        results. `init` computes the same state in every process, as on one device,
        and cannot be traced. Parameters, optimizer states and metrics are the same on
        all devices. For a mesh of one device, `algorithm` itself.

    Raises:
        SettingsError: an algorithm or settings that do not work on these devices.
    """
    num_devices = mesh.size
    if num_devices == 1:
        return algorithm
    split = algorithm.split
    if split is None:
        raise SettingsError(
            f"mesh.devices={num_devices}: this algorithm runs on one device; use 1."
        )

    def init(key: Array, *args: Any) -> Any:
        state = algorithm.init(key, *args)
        specs = split(state, num_devices)
        return jax.tree.map(lambda x, spec: _place(x, mesh, spec), state, specs)

    def local_step(state: Any) -> tuple[Any, Metrics]:
        token = _SHARDS.set(num_devices)
        try:
            return algorithm.step(state)
        finally:
            _SHARDS.reset(token)

    @jax.jit
    def step(state: Any) -> tuple[Any, Metrics]:
        # The structure of a state may depend on the parameters passed to `init`.
        specs = split(state, num_devices)
        return jax.shard_map(
            local_step,
            mesh=mesh,
            in_specs=(specs,),
            out_specs=(specs, WHOLE),
            # The algorithm's reductions make replicated values equal on all devices;
            # the check would need annotations in every scan.
            check_vma=False,
        )(state)

    # Trace now, so that errors about many devices appear here; JAX caches the trace.
    jax.eval_shape(step, jax.eval_shape(algorithm.init, jax.random.key(0)))
    return algorithm._replace(init=init, step=step, split=None, phases=())


def num_shards() -> int:
    """Number of devices of the sharded step that is being traced; 1 outside one."""
    return _SHARDS.get()


def total(tree: Tree) -> Tree:
    """Sum over devices."""
    return tree if num_shards() == 1 else jax.lax.psum(tree, _AXIS)


def greatest(tree: Tree) -> Tree:
    """Greatest over all devices."""
    return tree if num_shards() == 1 else jax.lax.pmax(tree, _AXIS)


def mean(tree: Tree, weight: Array | None = None) -> Tree:
    """Mean over devices.

    Args:
        weight: scalar weight of this device, a count; None: equal weights. If the
            weights of all devices are zero, the result is zero.
    """
    if num_shards() == 1:
        return tree
    if weight is None:
        return jax.lax.pmean(tree, _AXIS)
    share = weight / jnp.maximum(total(weight), 1.0)
    return total(jax.tree.map(lambda x: x * share, tree))


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and variance over all entries on all devices."""
    if num_shards() == 1:
        return x.mean(), x.var()
    centre = mean(x.mean())
    return centre, mean(((x - centre) ** 2).mean())


def first_found(found: Array, tree: Tree) -> Tree:
    """The tree of the first device on which `found`, a scalar, is True."""
    if num_shards() == 1:
        return tree
    rank = jnp.where(found, jax.lax.axis_index(_AXIS), num_shards())
    is_first = found & (rank == jax.lax.pmin(rank, _AXIS))

    def of_first(x: Array) -> Array:
        numbers = x.astype(jnp.int32) if x.dtype == bool else x  # No sum of booleans.
        return total(jnp.where(is_first, numbers, 0)).astype(x.dtype)

    return jax.tree.map(of_first, tree)


def local_part(x: Array, axis: int = 0) -> Array:
    """Slice out this device's part of an array that is the same on all devices."""
    if num_shards() == 1:
        return x
    size = x.shape[axis] // num_shards()
    start = jax.lax.axis_index(_AXIS) * size
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def on_one_device(tree: Tree) -> Tree:
    """Take replicated arrays from the first device of this process, without a copy."""

    def local(x: Any) -> Any:
        several = isinstance(x, jax.Array) and len(x.sharding.device_set) > 1
        return x.addressable_data(0) if several else x

    return jax.tree.map(local, tree)


def is_first_process() -> bool:
    """Whether this process writes and prints; True if it is the only one."""
    return jax.process_index() == 0


def agreed(answer: bool) -> bool:
    """Return the first process's answer in all processes; all must call this."""
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))


def _place(x: Array, mesh: Mesh, spec: PartitionSpec) -> Array:
    """Give each device its part of an array that every process holds completely."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _place(jax.random.key_data(x), mesh, spec)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    whole = np.asarray(x)
    return jax.make_array_from_callback(
        whole.shape, NamedSharding(mesh, spec), lambda index: whole[index]
    )
