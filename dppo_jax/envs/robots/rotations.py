"""Rotations in JAX: matrices [3, 3], quaternions [4] and rotation vectors [3].

Quaternions are MuJoCo's, (w, x, y, z). A rotation vector is the axis times the angle in
radians. All functions take one rotation; use `vmap` for more.

They are products with constant tensors wherever possible. XLA compiles these quickly,
but takes minutes for a long chain of operations on single entries.
"""

import jax.numpy as jnp
import numpy as np

from dppo_jax.types import Array

# 1 for even and -1 for odd permutations: (a x b)_k = a_i b_j CROSS_ijk.
CROSS = np.zeros((3, 3, 3), np.float32)
for _i, _j, _k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
    CROSS[_i, _j, _k], CROSS[_j, _i, _k] = 1.0, -1.0


def _quaternion_products() -> np.ndarray:
    """P [4, 4, 4] with (a b)_k = a_i b_j P_ijk."""
    products = np.zeros((4, 4, 4), np.float32)
    products[0, :, :] = np.eye(4)
    products[1:, 0, 1:] = np.eye(3)
    products[1:, 1:, 0] = -np.eye(3)
    products[1:, 1:, 1:] = CROSS
    return products


def _matrix_entries() -> np.ndarray:
    """M [4, 4, 3, 3] with R_ab = q_i q_j M_ijab, from R v = q v q^-1."""
    inverse = np.diag([1.0, -1.0, -1.0, -1.0]).astype(np.float32)
    products = _quaternion_products()
    turned = np.einsum("ivk,jm,kml->ijlv", products, inverse, products)
    return turned[:, :, 1:, 1:]


_PRODUCTS = _quaternion_products()
_ENTRIES = _matrix_entries()


def multiply(first: Array, second: Array) -> Array:
    """The quaternion of the rotation `second` followed by `first`."""
    return _bilinear("i,j,ijk->k", first, second, _PRODUCTS)


def conjugate(quaternion: Array) -> Array:
    """The quaternion of the inverse rotation."""
    return quaternion * np.array([1.0, -1.0, -1.0, -1.0], np.float32)


def to_matrix(quaternion: Array) -> Array:
    """The matrix of a unit quaternion."""
    return _bilinear("i,j,ijab->ab", quaternion, quaternion, _ENTRIES)


def about_z(angle: Array) -> Array:
    """The quaternion of a rotation about the z axis."""
    unit = np.eye(4, dtype=np.float32)
    return jnp.cos(angle / 2) * unit[0] + jnp.sin(angle / 2) * unit[3]


def yaw(rotation: Array) -> Array:
    """The angle in (-pi, pi] from the world's x axis to that of a body, from above.

    Args:
        rotation: matrix [3, 3].
    """
    return jnp.arctan2(rotation[1, 0], rotation[0, 0])


def from_vector(vector: Array) -> Array:
    """The matrix of a rotation vector (Rodrigues' formula)."""
    # The small number keeps angle and derivative finite at the zero vector.
    angle = jnp.sqrt(vector @ vector + 1e-12)
    cross = jnp.einsum("i,ijk->kj", vector / angle, CROSS, precision="highest")
    square = jnp.matmul(cross, cross, precision="highest")
    return jnp.eye(3) + jnp.sin(angle) * cross + (1 - jnp.cos(angle)) * square


def to_vector(rotation: Array) -> Array:
    """The rotation vector of a matrix, for angles below pi."""
    skew = jnp.einsum("kj,ijk->i", rotation, CROSS, precision="highest")
    sine = jnp.sqrt(skew @ skew + 1e-12) / 2
    angle = jnp.arctan2(sine, (jnp.trace(rotation) - 1) / 2)
    return skew / 2 * (angle / sine)


def wrap(angle: Array, period: float) -> Array:
    """The angle plus a multiple of `period`, in [-period / 2, period / 2)."""
    return jnp.mod(angle + period / 2, period) - period / 2


def _bilinear(how: str, first: Array, second: Array, tensor: np.ndarray) -> Array:
    return jnp.einsum(how, first, second, tensor, precision="highest")
