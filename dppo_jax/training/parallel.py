"""One Algorithm on many devices: each steps its own share of the environments.

The reductions below are the identity outside of a sharded step, so that an algorithm is
written once, and on one device compiles to the same program as if they were not there.
Whether one is inside is known while the step is traced.
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
# What `Algorithm.split` says of a leaf: its leading axis is of environments, which
# devices share; or all devices hold the same.
SPLIT, WHOLE = PartitionSpec(_AXIS), PartitionSpec()
_SHARDS = contextvars.ContextVar("_SHARDS", default=1)


def make_mesh(num_devices: int = 0) -> Mesh:
    """A row of devices; those of all processes where there are several.

    Args:
        num_devices: how many; 0: all there are.

    Raises:
        SettingsError: more devices than there are, or some processes left without.
    """
    there = jax.device_count()
    wanted = num_devices or there
    if not 1 <= wanted <= there:
        raise SettingsError(
            f"mesh.devices={num_devices}, but JAX sees {there} ({jax.default_backend()}"
            "); lower it, or 0 for all."
        )
    if jax.process_count() > 1 and wanted != there:
        raise SettingsError(
            f"mesh.devices={num_devices}, but the {jax.process_count()} processes have "
            f"{there} devices, and each must take part; use 0 for all."
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
        An Algorithm with the same draws and, but for rounding, the same numbers. `init`
        starts as one device would, in every process alike, and takes no tracers.
        Parameters, optimizer states and metrics are the same on all devices. On a mesh
        of one device it is `algorithm` itself.

    Raises:
        SettingsError: an algorithm or settings that cannot be split so.
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
        # The structure of a state may depend on the parameters that it starts from.
        specs = split(state, num_devices)
        return jax.shard_map(
            local_step,
            mesh=mesh,
            in_specs=(specs,),
            out_specs=(specs, WHOLE),
            # What is the same on all devices is so by the reductions of the algorithm;
            # the checker would want every scan to say it again.
            check_vma=False,
        )(state)

    # Whatever else refuses many devices does so now; what was traced is kept.
    jax.eval_shape(step, jax.eval_shape(algorithm.init, jax.random.key(0)))
    return algorithm._replace(init=init, step=step, split=None, phases=())


def num_shards() -> int:
    """Devices that share the environments of the step being traced; 1 outside."""
    return _SHARDS.get()


def total(tree: Tree) -> Tree:
    """Sum over devices."""
    return tree if num_shards() == 1 else jax.lax.psum(tree, _AXIS)


def mean(tree: Tree, weight: Array | None = None) -> Tree:
    """Mean over devices.

    Args:
        weight: scalar, what this device counts for; None: all alike. Weights that are
            counts, and all zero, give zero.
    """
    if num_shards() == 1:
        return tree
    if weight is None:
        return jax.lax.pmean(tree, _AXIS)
    share = weight / jnp.maximum(total(weight), 1.0)
    return total(jax.tree.map(lambda x: x * share, tree))


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and variance over all entries, of all devices."""
    if num_shards() == 1:
        return x.mean(), x.var()
    centre = mean(x.mean())
    return centre, mean(((x - centre) ** 2).mean())


def local_part(x: Array, axis: int = 0) -> Array:
    """This device's share of what every device computes alike."""
    if num_shards() == 1:
        return x
    size = x.shape[axis] // num_shards()
    start = jax.lax.axis_index(_AXIS) * size
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def on_one_device(tree: Tree) -> Tree:
    """What all devices hold alike, on the first device of this process; no copy."""

    def local(x: Any) -> Any:
        several = isinstance(x, jax.Array) and len(x.sharding.device_set) > 1
        return x.addressable_data(0) if several else x

    return jax.tree.map(local, tree)


def is_first_process() -> bool:
    """Whether it is this process that writes and prints; True where there is one."""
    return jax.process_index() == 0


def agreed(answer: bool) -> bool:
    """What the first process answers; all must ask."""
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))


def _place(x: Array, mesh: Mesh, spec: PartitionSpec) -> Array:
    """Give each device its part of an array that every process has whole."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _place(jax.random.key_data(x), mesh, spec)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    whole = np.asarray(x)
    return jax.make_array_from_callback(
        whole.shape, NamedSharding(mesh, spec), lambda index: whole[index]
    )
