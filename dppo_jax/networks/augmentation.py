"""Random shifts of images, the augmentation of training from pixels.

Images are `obs["rgb"]`, see `networks/vision.py`.
"""

import jax
import jax.numpy as jnp

from dppo_jax.errors import SettingsError
from dppo_jax.networks.vision import COLORS
from dppo_jax.types import Array, Obs


def shift_image(image: Array, offset: Array, *, max_shift: int) -> Array:
    """A window of an image that was padded by repeating its edge, of the same size.

    Args:
        image: [..., H, W, C].
        offset: [2] integers in [0, 2 max_shift], the upper left corner (row, column) of
            the window in the padded image; `max_shift` shifts nothing.
        max_shift: width of the padding in pixels.
    """
    axes = image.ndim - 3
    padding = [(0, 0)] * axes + [(max_shift, max_shift)] * 2 + [(0, 0)]
    padded = jnp.pad(image, padding, mode="edge")
    return jax.lax.dynamic_slice(padded, jnp.pad(offset, (axes, 1)), image.shape)


def random_shifts(keys: Array, obs: Obs, *, max_shift: int = 4) -> Obs:
    """The observations with their images shifted at random, each row by its own key.

    Every camera of a row has a shift of its own, in rows and columns uniform from
    -max_shift to max_shift, which is the same for all frames of its history (Kostrikov
    et al. 2020, arXiv 2004.13649; the published DPPO code pads by 4).
    Training alone uses it: acting and evaluation read images as they are.

    Args:
        keys: [B], one key per row.
        obs: with "rgb" [B, T, H, W, 3 N]; other entries stay as they are.
        max_shift: in pixels; 0 shifts nothing.

    Raises:
        SettingsError: observations without images, or a negative shift.
    """
    if max_shift < 0:
        raise SettingsError(f"random_shift={max_shift} must not be negative.")
    if max_shift == 0:
        return obs
    if "rgb" not in obs:
        raise SettingsError(
            f"random_shift={max_shift} shifts images, but the observations have only "
            f"{sorted(obs)}; use 0."
        )

    def one(key: Array, rgb: Array) -> Array:
        """[T, H, W, 3 N], of one row."""
        cameras = rgb.reshape(*rgb.shape[:-1], -1, COLORS)
        num_cameras = cameras.shape[-2]
        offsets = jax.random.randint(key, (num_cameras, 2), 0, 2 * max_shift + 1)
        shifted = jax.vmap(
            lambda image, offset: shift_image(image, offset, max_shift=max_shift),
            in_axes=(-2, 0),
            out_axes=-2,
        )(cameras, offsets)
        return shifted.reshape(rgb.shape)

    return {**obs, "rgb": jax.vmap(one)(keys, obs["rgb"])}
