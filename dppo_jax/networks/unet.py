"""A U-Net over the actions of a chunk, as denoiser.

The architecture is that of `Unet1D` in the DPPO code (github irom-princeton/dppo,
v0.8), which derives from Diffusion Policy (Chi et al. 2023, arXiv 2303.04137) and
Diffuser (Janner et al. 2022, arXiv 2205.09991). Time and observation enter every
residual block by FiLM (Perez et al. 2018, arXiv 1709.07871).

Arrays inside are [B, L, C]: L places in the chunk, C channels. Convolutions are matrix
products over windows, because those stay matrix products under `vmap` over parameters
(many seeds) and in gradients. Layers are initialised like PyTorch's, see `mlp`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.errors import SettingsError
from dppo_jax.networks.encoders import StateEncoder
from dppo_jax.networks.mlp import (
    Linear,
    ResidualMLP,
    TimeEmbedding,
    activation_function,
    check_compute_dtype,
    check_sizes,
)
from dppo_jax.types import Array, Obs


class Conv(nn.Module):
    """A convolution with zero padding, [B, L, C] -> [B, ceil(L / stride), features].

    kernel_size: odd; out[t] = sum_i x[stride t + i - kernel_size // 2] kernel[i].
    compute_dtype: of the product and of the output; the parameters are float32.
    """

    features: int
    kernel_size: int
    stride: int = 1
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size = self.kernel_size
        uniform = _uniform(size * x.shape[-1])
        kernel = self.param("kernel", uniform, (size, x.shape[-1], self.features))
        bias = self.param("bias", uniform, (self.features,))
        x, kernel, bias = (a.astype(self.compute_dtype) for a in (x, kernel, bias))
        length = x.shape[1]
        x = jnp.pad(x, ((0, 0), (size // 2, size // 2), (0, 0)))
        windows = [x[:, i : i + length : self.stride] for i in range(size)]
        return _product(windows, list(kernel)) + bias


class Upsample(nn.Module):
    """A transposed convolution that doubles the length, [B, L, C] -> [B, 2 L, C].

    Its kernel [4, outputs, inputs] acts with stride 2, and one place is cut off at both
    ends: out[2 t + i - 1] is the sum of kernel[i] x[t] over all t and i.

    compute_dtype: as in `Conv`.
    """

    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        uniform = _uniform(4 * channels)
        kernel = self.param("kernel", uniform, (4, channels, channels))
        bias = self.param("bias", uniform, (channels,))
        x, kernel, bias = (a.astype(self.compute_dtype) for a in (x, kernel, bias))
        first, second, third, fourth = jnp.swapaxes(kernel, 1, 2)
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
        before, after = padded[:, :-2], padded[:, 2:]
        even = _product([x, before], [second, fourth])
        odd = _product([x, after], [third, first])
        return jnp.stack([even, odd], axis=2).reshape(len(x), -1, channels) + bias


class ConvBlock(nn.Module):
    """A convolution, optional group normalisation, and the activation.

    num_groups: of channels that are normalised together; None: no normalisation.
    """

    features: int
    kernel_size: int
    num_groups: int | None
    group_norm_eps: float
    activation: str
    compute_dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dtype = self.compute_dtype
        x = Conv(self.features, self.kernel_size, compute_dtype=dtype, name="conv")(x)
        if self.num_groups is not None:
            norm = nn.GroupNorm(
                self.num_groups,
                epsilon=self.group_norm_eps,
                # The two-pass variance is accurate even if the mean is large.
                use_fast_variance=False,
                name="norm",
            )
            x = norm(x.astype(jnp.float32)).astype(dtype)
        return activation_function(self.activation)(x)


class FiLM(nn.Module):
    """Shift every channel, and scale it, by what layers make of the condition.

    (x [B, L, C], condition [B, F]) -> scale x + shift, or x + shift.

    predict_scale: predict both.
    larger_encoder: three linear layers with activations between them; otherwise an
        activation and one linear layer.
    """

    predict_scale: bool
    larger_encoder: bool
    activation: str
    compute_dtype: str

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        features = (2 if self.predict_scale else 1) * x.shape[-1]
        linear = functools.partial(Linear, features, self.compute_dtype)
        activation = activation_function(self.activation)
        if self.larger_encoder:
            out = linear(name="linear_1")(condition)
            out = linear(name="linear_2")(activation(out))
            out = linear(name="linear_3")(activation(out))
        else:
            out = linear(name="linear")(activation(condition))
        out = out[:, None]
        if not self.predict_scale:
            return x + out
        scale, shift = jnp.split(out, 2, axis=-1)
        return scale * x + shift


class ConditionalBlock(nn.Module):
    """Two convolution blocks with FiLM between them, and a shortcut around both.

    (x [B, L, C], condition [B, F]) -> [B, L, features].
    """

    features: int
    kernel_size: int
    num_groups: int | None
    group_norm_eps: float
    predict_scale: bool
    larger_encoder: bool
    activation: str
    compute_dtype: str

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        block = functools.partial(
            ConvBlock,
            features=self.features,
            kernel_size=self.kernel_size,
            num_groups=self.num_groups,
            group_norm_eps=self.group_norm_eps,
            activation=self.activation,
            compute_dtype=self.compute_dtype,
        )
        film = FiLM(
            predict_scale=self.predict_scale,
            larger_encoder=self.larger_encoder,
            activation=self.activation,
            compute_dtype=self.compute_dtype,
            name="film",
        )
        out = block(name="block_1")(x)
        out = block(name="block_2")(film(out, condition))
        if x.shape[-1] != self.features:
            x = Conv(
                self.features, 1, compute_dtype=self.compute_dtype, name="shortcut"
            )(x)
        return out + x


class DiffusionUNet(nn.Module):
    """A denoiser: (x [B, Ta, Da], time [B], obs) -> output [B, Ta, Da].

    Each level has two blocks and halves the length for the next one. Two blocks follow
    at the lowest level. On the way up each level has two blocks that also read what the
    level below left on the way down, and doubles the length. A call is
    `denoise(x, time, encode(obs))`, as in `DiffusionMLP`.

    action_dim: Da.
    chunk: Ta, a multiple of 2^(levels - 1).
    time_dim: size of the time embedding, even and at least 4.
    dim: channels of the first level, before `dim_mults`.
    dim_mults: one factor of `dim` per level.
    kernel_size: of the convolutions inside blocks, odd.
    num_groups: of group normalisation, a divisor of all numbers of channels; None: no
        normalisation.
    num_out_groups: as `num_groups`, of the last block; None: as many.
    group_norm_eps: added to variances in group normalisation.
    predict_scale: FiLM scales channels as well.
    larger_encoder: three layers in every FiLM, otherwise one. The reference has three
        unless its `smaller_encoder` or `cond_mlp_dims` is set.
    condition_sizes: a residual perceptron between the encoder's features and FiLM, 1,
        3, 5, ... equal hidden sizes and the size of its output; None: none.
    activation: a name in `mlp.ACTIVATIONS`; the time embedding has Mish.
    compute_dtype: of the hidden layers, see `mlp.COMPUTE_DTYPES`.
    encoder: obs -> features [B, F], see `networks.encoders`.

    Raises:
        SettingsError: invalid or contradictory sizes or names.
    """

    action_dim: int
    chunk: int
    time_dim: int = 16
    dim: int = 64
    dim_mults: Sequence[int] = (1, 2)
    kernel_size: int = 5
    num_groups: int | None = 8
    num_out_groups: int | None = None
    group_norm_eps: float = 1e-5
    predict_scale: bool = True
    larger_encoder: bool = True
    condition_sizes: Sequence[int] | None = None
    activation: str = "mish"
    compute_dtype: str = "float32"
    encoder: nn.Module = StateEncoder()

    def __post_init__(self):
        activation_function(self.activation)
        check_compute_dtype(self.compute_dtype)
        _check_levels(self.chunk, self.dim, self.dim_mults)
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise SettingsError(
                f"kernel_size={self.kernel_size} must be odd and positive, so that a "
                "convolution keeps the length of a chunk; for example 5."
            )
        if self.num_groups is not None:
            _check_groups("num_groups", self.num_groups, self.dim, self.dim_mults)
        if self.num_out_groups is not None:
            _check_groups("num_out_groups", self.num_out_groups, self.dim, (1,))
        if not self.group_norm_eps > 0:
            raise SettingsError(
                f"group_norm_eps={self.group_norm_eps} must be positive; for example "
                "1e-5."
            )
        if self.condition_sizes is not None:
            _check_condition_sizes(self.condition_sizes)
        super().__post_init__()

    def setup(self) -> None:
        # Names of attributes are names of parameters in checkpoints; a list [i][j]
        # becomes down_i_j.
        options: dict[str, Any] = dict(
            activation=self.activation, compute_dtype=self.compute_dtype
        )
        convolution = options | dict(
            kernel_size=self.kernel_size,
            num_groups=self.num_groups,
            group_norm_eps=self.group_norm_eps,
        )

        def two_blocks(features: int) -> list[ConditionalBlock]:
            block = functools.partial(
                ConditionalBlock,
                features=features,
                predict_scale=self.predict_scale,
                larger_encoder=self.larger_encoder,
                **convolution,
            )
            return [block(), block()]

        if self.condition_sizes is not None:
            self.condition = ResidualMLP(
                self.condition_sizes[-1], self.condition_sizes[:-1], **options
            )
        self.time_embedding = TimeEmbedding(self.time_dim, expansion=4)
        *upper, lowest = (self.dim * factor for factor in self.dim_mults)
        dtype = self.compute_dtype
        self.down = [two_blocks(features) for features in (*upper, lowest)]
        self.downsample = [
            Conv(features, 3, stride=2, compute_dtype=dtype) for features in upper
        ]
        self.middle = two_blocks(lowest)
        self.up = [two_blocks(features) for features in reversed(upper)]
        self.upsample = [Upsample(dtype) for _ in upper]
        if self.num_out_groups is not None:
            convolution |= dict(num_groups=self.num_out_groups)
        self.out_block = ConvBlock(self.dim, **convolution)
        self.out = Conv(self.action_dim, 1)

    def __call__(self, x: Array, time: Array, obs: Obs) -> Array:
        return self.denoise(x, time, self.encode(obs))

    def encode(self, obs: Obs) -> Array:
        """Compute what does not depend on the step, obs -> [B, C]."""
        features = self.encoder(obs)
        return features if self.condition_sizes is None else self.condition(features)

    def denoise(self, x: Array, time: Array, condition: Array) -> Array:
        """Compute the output, given `encode(obs)`; a `time` [1] holds for all rows."""
        chex.assert_shape(x, (None, self.chunk, self.action_dim))
        batch = x.shape[0]
        chex.assert_shape(condition, (batch, None))
        chex.assert_shape(time, ({1, batch}, ...))
        embedding = self.time_embedding(time)
        embedding = jnp.broadcast_to(embedding, (batch, self.time_dim))
        condition = jnp.concatenate([embedding, condition], axis=-1)
        skipped = []
        for level, blocks in enumerate(self.down):
            if level > 0:
                x = self.downsample[level - 1](x)
            for block in blocks:
                x = block(x, condition)
            skipped.append(x)
        for block in self.middle:
            x = block(x, condition)
        for blocks, upsample in zip(self.up, self.upsample, strict=True):
            x = jnp.concatenate([x, skipped.pop()], axis=-1)
            for block in blocks:
                x = block(x, condition)
            x = upsample(x)
        return self.out(self.out_block(x))


def _product(inputs: list[Array], kernels: list[Array]) -> Array:
    """The sum of inputs[i] @ kernels[i], as one product."""
    return jnp.concatenate(inputs, axis=-1) @ jnp.concatenate(kernels, axis=0)


def _uniform(num_inputs: int) -> Any:
    """An initialiser, uniform in +-1 / sqrt(num_inputs)."""
    bound = 1 / np.sqrt(num_inputs)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _check_levels(chunk: int, dim: int, dim_mults: Sequence[int]) -> None:
    if isinstance(dim_mults, (int, str)) or not dim_mults or min(dim_mults) < 1:
        raise SettingsError(
            f"dim_mults={dim_mults!r} must be a non-empty sequence of positive factors "
            "of dim, one per level; for example (1, 2)."
        )
    if dim < 1:
        raise SettingsError(f"dim={dim} must be positive; for example 64.")
    halvings = len(dim_mults) - 1
    if chunk < 1 or chunk % 2**halvings:
        raise SettingsError(
            f"chunk={chunk} actions cannot be halved {halvings} times, once between "
            f"each two of the {len(dim_mults)} levels of dim_mults={tuple(dim_mults)}; "
            f"predict a multiple of {2**halvings} actions (model.chunk), of which "
            "fewer may be executed (env.executed), or give fewer dim_mults."
        )


def _check_groups(
    name: str, num_groups: int, dim: int, dim_mults: Sequence[int]
) -> None:
    for channels in (dim, *(dim * factor for factor in dim_mults)):
        if num_groups < 1 or channels % num_groups:
            raise SettingsError(
                f"{name}={num_groups} must divide the {channels} channels of a "
                f"level (dim={dim}, dim_mults={tuple(dim_mults)}); None does not "
                "normalise."
            )


def _check_condition_sizes(sizes: Sequence[int]) -> None:
    check_sizes("condition_sizes", sizes)
    if len(sizes) % 2 or len(set(sizes[:-1])) != 1:
        raise SettingsError(
            f"condition_sizes={tuple(sizes)} do not suit a residual perceptron; give "
            "1, 3, 5, ... equal hidden sizes and the size of the output, for example "
            "(512, 64)."
        )
