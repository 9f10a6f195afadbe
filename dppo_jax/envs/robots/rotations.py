"""Rotations in JAX: matrices [3, 3], quaternions [4] and rotation vectors [3].

Quaternions are MuJoCo's, (w, x, y, z). A rotation vector is the axis times the angle in
radians. All functions take one rotation; use `vmap` for more.
"""

import jax.numpy as jnp

from dppo_jax.types import Array


def multiply(first: Array, second: Array) -> Array:
    """The quaternion of the rotation `second` followed by `first`."""
    w, vector = first[0], first[1:]
    other_w, other_vector = second[0], second[1:]
    return jnp.concatenate(
        [
            (w * other_w - vector @ other_vector)[None],
            w * other_vector + other_w * vector + jnp.cross(vector, other_vector),
        ]
    )


def conjugate(quaternion: Array) -> Array:
    """The quaternion of the inverse rotation."""
    return quaternion * jnp.array([1.0, -1.0, -1.0, -1.0])


def to_matrix(quaternion: Array) -> Array:
    """The matrix of a unit quaternion."""
    w, x, y, z = quaternion
    return jnp.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def about_z(angle: Array) -> Array:
    """The quaternion of a rotation about the z axis."""
    zero = jnp.zeros_like(angle)
    return jnp.stack([jnp.cos(angle / 2), zero, zero, jnp.sin(angle / 2)])


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
    x, y, z = vector / angle
    cross = jnp.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return jnp.eye(3) + jnp.sin(angle) * cross + (1 - jnp.cos(angle)) * square(cross)


def to_vector(rotation: Array) -> Array:
    """The rotation vector of a matrix, for angles below pi."""
    skew = jnp.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    sine = jnp.sqrt(skew @ skew + 1e-12) / 2
    angle = jnp.arctan2(sine, (jnp.trace(rotation) - 1) / 2)
    return skew / 2 * (angle / sine)


def square(matrix: Array) -> Array:
    """The product of a matrix with itself, in full float32 precision."""
    return jnp.matmul(matrix, matrix, precision="highest")


def wrap(angle: Array, period: float) -> Array:
    """The angle plus a multiple of `period`, in [-period / 2, period / 2)."""
    return jnp.mod(angle + period / 2, period) - period / 2
