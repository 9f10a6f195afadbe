"""Images: a vision transformer as an encoder.

Images are `obs["rgb"]` [B, T, H, W, C] uint8, or floats with the same values 0 ... 255.
The channels are those of one camera after the other, three each: C = 3 N for N cameras.

The networks are those of the DPPO paper's pixel policies (Ren et al. 2025,
arXiv 2409.00588), which took them from IBRL (Hu et al. 2024, arXiv 2311.02198): a small
vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) whose patches may come
from two convolutions, and a spatial embedding of its output. Sizes, layer orders and
initial distributions are facts of the published code (github irom-princeton/dppo,
`model/common/vit.py` and `modules.py`).
"""

from collections.abc import Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from dppo_jax.errors import SettingsError
from dppo_jax.networks.mlp import Linear, check_compute_dtype
from dppo_jax.networks.patches import PatchEmbedding
from dppo_jax.types import Array, Obs

COLORS = 3  # channels of one camera
POOLINGS = ("spatial", "flat")

_INITIAL_STD = 0.02  # of the linear layers and of the position code, at the start


class ViTEncoder(nn.Module):
    """Images and states: obs -> [B, N features + To Do].

    `obs["rgb"]` is [B, T, H, W, 3 N] and `obs["state"]` is [B, To, Do]. The features of
    the cameras come first, one after the other, and the flat state last. All cameras
    share one transformer; each has an embedding of its own. The frames of a camera are
    stacked in its channels, the oldest first.

    image_size: (H, W).
    num_cameras: N.
    image_history: frames that are read, the most recent ones; T is at least that.
    patch_layers: 1 cuts the image into patches, 2 lets a second convolution join
        overlapping ones; see `PatchEmbedding`.
    patch_size: sides of a patch in pixels.
    patch_norm: normalise between the two convolutions.
    depth: transformer layers.
    num_heads: attention heads; divides `embed_dim`.
    embed_dim: E, numbers per patch.
    pooling: what makes a vector of the patches of a camera, "spatial" (see
        `SpatialEmbedding`) or "flat" (see `FlatEmbedding`).
    features: size of that vector.
    compute_dtype: of the layers, "float32" or "bfloat16".

    Raises:
        SettingsError: for settings that no such encoder can be built from, or an
            observation with other images.
    """

    image_size: Sequence[int] = (96, 96)
    num_cameras: int = 1
    image_history: int = 1
    patch_layers: int = 2
    patch_size: int = 8
    patch_norm: bool = False
    depth: int = 1
    num_heads: int = 4
    embed_dim: int = 128
    pooling: str = "spatial"
    features: int = 128
    compute_dtype: str = "float32"

    def __post_init__(self):
        check_compute_dtype(self.compute_dtype)
        for name in (
            *("num_cameras", "image_history", "patch_size", "num_heads"),
            *("depth", "embed_dim", "features"),
        ):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.embed_dim % self.num_heads:
            raise SettingsError(
                f"num_heads={self.num_heads} must divide embed_dim={self.embed_dim}; "
                "change one of them."
            )
        if self.pooling not in POOLINGS:
            raise SettingsError(
                f"pooling={self.pooling!r} is unknown; use one of "
                f"{', '.join(POOLINGS)}."
            )
        self._check_patches()
        super().__post_init__()

    def _check_patches(self):
        if self.patch_layers not in (1, 2):
            raise SettingsError(f"patch_layers={self.patch_layers} must be 1 or 2.")
        if self.patch_layers == 1 and self.patch_norm:
            raise SettingsError(
                "patch_norm=True normalises between two convolutions, but "
                "patch_layers=1; set patch_layers=2 or patch_norm=False."
            )
        if self.patch_layers == 2 and self.patch_size % 2:
            raise SettingsError(
                f"patch_size={self.patch_size} must be even with patch_layers=2, "
                "because patches overlap by half."
            )
        least = self.patch_size * self.patch_layers
        if len(self.image_size) != 2 or min(self.image_size) < least:
            raise SettingsError(
                f"image_size={tuple(self.image_size)} must be height and width of at "
                f"least {least} pixels each with patch_size={self.patch_size} and "
                f"patch_layers={self.patch_layers}."
            )

    @nn.compact
    def __call__(self, obs: Obs) -> Array:
        self._check_obs(obs)
        state = obs["state"].reshape(obs["state"].shape[0], -1).astype(jnp.float32)
        images = camera_images(obs["rgb"], self.image_history)
        transformer = ViT(
            patch_layers=self.patch_layers,
            patch_size=self.patch_size,
            patch_norm=self.patch_norm,
            depth=self.depth,
            num_heads=self.num_heads,
            embed_dim=self.embed_dim,
            compute_dtype=self.compute_dtype,
            name="vit",
        )
        # The transformer runs once, on all cameras as one batch.
        patches = transformer(images.reshape(-1, *images.shape[2:]))
        patches = patches.reshape(*images.shape[:2], *patches.shape[1:])
        embedding = SpatialEmbedding if self.pooling == "spatial" else FlatEmbedding
        features = [
            embedding(self.features, self.compute_dtype, name=f"camera_{i}")(x, state)
            for i, x in enumerate(patches)
        ]
        return jnp.concatenate([*features, state], axis=-1)

    def _check_obs(self, obs: Obs) -> None:
        missing = [name for name in ("rgb", "state") if name not in obs]
        if missing:
            raise SettingsError(
                f"ViTEncoder reads obs['rgb'] and obs['state'], but the observation "
                f"has {sorted(obs)}; use a task with cameras and a state, or the "
                "encoder kind 'state'."
            )
        chex.assert_rank([obs["state"], obs["rgb"]], [3, 5])
        frames, *shape = obs["rgb"].shape[1:]
        expected = [*self.image_size, COLORS * self.num_cameras]
        if shape != expected or frames < self.image_history:
            raise SettingsError(
                f"obs['rgb'] has shape {obs['rgb'].shape}, but the encoder reads "
                f"[B, at least {self.image_history}, {', '.join(map(str, expected))}] "
                f"with image_size={tuple(self.image_size)}, "
                f"num_cameras={self.num_cameras}, image_history={self.image_history}; "
                "change these settings or the images."
            )


def camera_images(rgb: Array, image_history: int) -> Array:
    """What a transformer reads of each camera, [N, B, H, W, 3 image_history].

    Args:
        rgb: [B, T, H, W, 3 N], of which the last `image_history` frames count. They end
            up in the channels, the oldest first.

    Returns:
        float32, 0 ... 255 mapped to -0.5 ... 0.5.
    """
    rgb = rgb[:, -image_history:]
    batch, frames, height, width, channels = rgb.shape
    images = rgb.reshape(batch, frames, height, width, channels // COLORS, COLORS)
    images = jnp.moveaxis(images, (4, 1), (0, 4))  # [N, B, H, W, T, 3]
    images = images.reshape(-1, batch, height, width, frames * COLORS)
    return images.astype(jnp.float32) / 255 - 0.5


class ViT(nn.Module):
    """A vision transformer without a class token: [B, H, W, C] -> [B, P, E].

    Patches, a learned position code, pre-normalised layers and a last normalisation
    (Dosovitskiy et al. 2021, eqs. 1 to 4). The options are those of `ViTEncoder`.
    """

    patch_layers: int
    patch_size: int
    patch_norm: bool
    depth: int
    num_heads: int
    embed_dim: int
    compute_dtype: str

    @nn.compact
    def __call__(self, images: Array) -> Array:
        x = PatchEmbedding(
            layers=self.patch_layers,
            size=self.patch_size,
            norm=self.patch_norm,
            embed_dim=self.embed_dim,
            compute_dtype=self.compute_dtype,
            name="patches",
        )(images)
        position = nn.initializers.normal(_INITIAL_STD)
        x = x + self.param("position", position, x.shape[1:])
        for i in range(self.depth):
            layer = TransformerLayer(
                self.num_heads, self.compute_dtype, name=f"layer_{i}"
            )
            x = layer(x)
        return _layer_norm("norm")(x)


class TransformerLayer(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x)), [B, P, E] -> the same.

    All patches attend to all. The perceptron has one hidden layer of 4 E with GELU.
    """

    num_heads: int
    compute_dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size = x.shape[-1]
        heads = (*x.shape[:-1], 3, self.num_heads, size // self.num_heads)
        qkv = self._dense(3 * size, "qkv")(_layer_norm("norm_1")(x)).reshape(heads)
        attended = jax.nn.dot_product_attention(
            qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]
        )
        x = x + self._dense(size, "output")(attended.reshape(x.shape))
        hidden = self._dense(4 * size, "linear_1")(_layer_norm("norm_2")(x))
        hidden = jax.nn.gelu(hidden, approximate=False)
        return x + self._dense(size, "linear_2")(hidden)

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(
            features,
            dtype=self.compute_dtype,
            kernel_init=nn.initializers.normal(_INITIAL_STD),
            name=name,
        )


class SpatialEmbedding(nn.Module):
    """Patches and the state to one vector: [B, P, E], [B, S] -> [B, features].

    For every entry of a patch, the values at all places, with the state beside them, go
    through a linear layer, normalisation and ReLU; a learned weight of each of the
    [E, features] results then sums them over the entries.
    """

    features: int
    compute_dtype: str

    @nn.compact
    def __call__(self, patches: Array, state: Array) -> Array:
        maps = jnp.swapaxes(patches, 1, 2)
        beside = jnp.broadcast_to(
            state[:, None], (*maps.shape[:2], state.shape[-1])
        ).astype(maps.dtype)
        x = jnp.concatenate([maps, beside], axis=-1)
        x = Linear(self.features, self.compute_dtype, name="linear")(x)
        x = jax.nn.relu(_layer_norm("norm")(x))
        weight = self.param("weight", nn.initializers.normal(1.0), x.shape[1:])
        return (weight * x).sum(1)


class FlatEmbedding(nn.Module):
    """All patches to one vector, [B, P, E] -> [B, features]; a state is not read.

    A linear layer, normalisation and ReLU.
    """

    features: int
    compute_dtype: str

    @nn.compact
    def __call__(self, patches: Array, state: Array) -> Array:
        del state  # Another pooling reads it.
        x = patches.reshape(patches.shape[0], -1)
        x = Linear(self.features, self.compute_dtype, name="linear")(x)
        return jax.nn.relu(_layer_norm("norm")(x))


def _layer_norm(name: str) -> nn.LayerNorm:
    # The two-pass variance keeps float32 accurate where the mean is large.
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)
