"""Multi-layer perceptrons: plain, residual and denoising.

Layers are initialised like PyTorch's `Linear`, kernel and bias uniform in
+-1 / sqrt(inputs), because the hyperparameters of the DPPO paper (Ren et al. 2025,
arXiv 2409.00588) were tuned with this initialisation.
"""

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.errors import SettingsError
from dppo_jax.networks.encoders import StateEncoder
from dppo_jax.types import Array, Obs

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "elu": jax.nn.elu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "identity": lambda x: x,
    "mish": jax.nn.mish,
    "relu": jax.nn.relu,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
}

# Types in which hidden layers compute. Parameters, normalisation, losses and the last
# layer, whose output is a value or enters a log-probability, are always float32.
# bfloat16 is for accelerators, whose matrix units multiply it many times faster.
COMPUTE_DTYPES = ("float32", "bfloat16")


def activation_function(name: str) -> Callable[[Array], Array]:
    """The activation called `name`, in any capitalisation.

    Raises:
        SettingsError: the name is not in `ACTIVATIONS`.
    """
    if str(name).lower() not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise SettingsError(f"activation={name!r} is not known; choose one of {known}.")
    return ACTIVATIONS[name.lower()]


def check_sizes(option: str, sizes: Sequence[int]) -> None:
    """Raise SettingsError for layer sizes that are empty or no positive integers."""

    def fits(size: Any) -> bool:
        is_integer = isinstance(size, numbers.Integral) and not isinstance(size, bool)
        return is_integer and size >= 1

    if not isinstance(sizes, Sequence) or not sizes or not all(map(fits, sizes)):
        raise SettingsError(
            f"{option}={sizes!r} must be a non-empty sequence of positive "
            "integers, for example (256, 256, 256)."
        )


def check_compute_dtype(name: str) -> None:
    """Raise SettingsError for a name that is not in `COMPUTE_DTYPES`."""
    if name not in COMPUTE_DTYPES:
        raise SettingsError(
            f"compute_dtype={name!r} is not known; choose one of "
            f"{', '.join(COMPUTE_DTYPES)}."
        )


def check_residual_sizes(sizes: Sequence[int]) -> None:
    """Raise SettingsError for sizes that are not an odd number of equal ones."""
    if len(sizes) % 2 == 0 or len(set(sizes)) != 1:
        raise SettingsError(
            f"hidden_sizes={tuple(sizes)} do not suit a residual network, which has a "
            "first hidden layer and blocks of two layers of the same width; give "
            "1, 3, 5, ... equal sizes, for example (256, 256, 256), or residual=False."
        )


class Linear(nn.Module):
    """A dense layer; kernel and bias are initialised uniform in +-1 / sqrt(inputs).

    compute_dtype: type of the product and of the output; the parameters are always
        float32.
    """

    features: int
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        bound = 1 / np.sqrt(x.shape[-1])

        def uniform(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        kernel = self.param("kernel", uniform, (x.shape[-1], self.features))
        bias = self.param("bias", uniform, (self.features,))
        x, kernel, bias = (a.astype(self.compute_dtype) for a in (x, kernel, bias))
        return x @ kernel + bias


class MLPLayer(nn.Module):
    """A linear layer, optional layer normalisation, and the activation."""

    features: int
    activation: str
    layer_norm: bool
    compute_dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Linear(self.features, self.compute_dtype, name="linear")(x)
        if self.layer_norm:
            x = _layer_norm(1e-5, "norm")(x)
        return activation_function(self.activation)(x)


class MLP(nn.Module):
    """A plain perceptron, [..., inputs] -> [..., features].

    hidden_sizes: if empty, the network is one linear layer.
    layer_norm: normalise every hidden layer before its activation.
    layer_norm_out: normalise the output as well, before `out_activation`.
    compute_dtype: of all layers but the last, see `COMPUTE_DTYPES`.
    """

    features: int
    hidden_sizes: Sequence[int]
    activation: str = "mish"
    out_activation: str = "identity"
    layer_norm: bool = False
    layer_norm_out: bool = False
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, size in enumerate(self.hidden_sizes):
            x = MLPLayer(
                size,
                activation=self.activation,
                layer_norm=self.layer_norm,
                compute_dtype=self.compute_dtype,
                name=f"layer_{i}",
            )(x)
        return MLPLayer(
            self.features,
            activation=self.out_activation,
            layer_norm=self.layer_norm_out,
            compute_dtype="float32",
            name=f"layer_{len(self.hidden_sizes)}",
        )(x)


class ResidualBlock(nn.Module):
    """x + two linear layers; normalisation and activation precede each of them."""

    activation: str
    layer_norm: bool
    compute_dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation = activation_function(self.activation)
        residual = x
        for i in (1, 2):
            if self.layer_norm:
                residual = _layer_norm(1e-6, f"norm_{i}")(residual)
            residual = Linear(x.shape[-1], self.compute_dtype, name=f"linear_{i}")(
                activation(residual)
            )
        return x + residual


class ResidualMLP(nn.Module):
    """Pre-activation residual blocks of two layers, [..., inputs] -> [..., features].

    hidden_sizes: 1, 3, 5, ... equal sizes, for a linear layer and 0, 1, 2, ... blocks.
    layer_norm: normalise inside the blocks.
    layer_norm_out: normalise the output, before `out_activation`.
    compute_dtype: of all layers but the last, see `COMPUTE_DTYPES`.

    Raises:
        SettingsError: hidden sizes that are not an odd number of equal sizes.
    """

    features: int
    hidden_sizes: Sequence[int]
    activation: str = "mish"
    out_activation: str = "identity"
    layer_norm: bool = False
    layer_norm_out: bool = False
    compute_dtype: str = "float32"

    def __post_init__(self):
        check_residual_sizes(self.hidden_sizes)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        num_blocks = (len(self.hidden_sizes) - 1) // 2
        dtype = self.compute_dtype
        x = Linear(self.hidden_sizes[0], dtype, name="linear_0")(x)
        for i in range(1, num_blocks + 1):
            block = ResidualBlock(
                self.activation, self.layer_norm, dtype, name=f"block_{i}"
            )
            x = block(x)
        x = Linear(self.features, name=f"linear_{num_blocks + 1}")(x)
        if self.layer_norm_out:
            x = _layer_norm(1e-5, f"norm_{num_blocks + 2}")(x)
        return activation_function(self.out_activation)(x)


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines at `dim / 2` frequencies from 1 to 1e-4, [B] -> [B, dim].

    The position encoding of Vaswani et al. (2017, section 3.5), all sines first.

    Raises:
        SettingsError: `dim` is odd or below 4.
    """

    dim: int

    def __post_init__(self):
        if self.dim < 4 or self.dim % 2:
            raise SettingsError(
                f"time_dim={self.dim} must be an even number of at least 4: a sine and "
                "a cosine of each of two or more frequencies."
            )
        super().__post_init__()

    def __call__(self, time: Array) -> Array:
        chex.assert_rank(time, 1)
        half = self.dim // 2
        exponent = jnp.arange(half, dtype=jnp.float32) * -(np.log(10000) / (half - 1))
        angle = jnp.asarray(time, jnp.float32)[:, None] * jnp.exp(exponent)
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class TimeEmbedding(nn.Module):
    """A sinusoidal embedding and two layers with Mish between them, [B] -> [B, dim].

    Of times [B, 2] both are embedded alike, one after the other.
    """

    dim: int
    expansion: int = 2  # width of the first layer, in multiples of dim

    @nn.compact
    def __call__(self, time: Array) -> Array:
        x = SinusoidalEmbedding(self.dim)(time.reshape(-1)).reshape(len(time), -1)
        x = jax.nn.mish(Linear(self.expansion * self.dim, name="linear_1")(x))
        return Linear(self.dim, name="linear_2")(x)


class DiffusionMLP(nn.Module):
    """A denoiser: (x [B, Ta, Da], time [B], obs) -> output [B, Ta, Da].

    The caller decides what the output means: noise, clean action or velocity. A call is
    `denoise(x, time, encode(obs))`; the encoding is the same at every step of a chain.

    action_dim: Da.
    chunk: Ta.
    time_dim: size of the time embedding, even and at least 4.
    hidden_sizes: of the trunk, whose inputs are noisy action, time and observation.
    condition_sizes: layers between the encoder's features and the trunk; None: none.
    activation, out_activation: names in `ACTIVATIONS`.
    layer_norm: normalise the hidden layers of the trunk.
    residual: build the trunk from residual blocks; needs 1, 3, 5, ... equal sizes.
    compute_dtype: of the hidden layers, see `COMPUTE_DTYPES`.
    encoder: obs -> features [B, F], see `networks.encoders`.

    Raises:
        SettingsError: invalid sizes or names.
    """

    action_dim: int
    chunk: int
    time_dim: int = 16
    hidden_sizes: Sequence[int] = (256, 256, 256)
    condition_sizes: Sequence[int] | None = None
    activation: str = "mish"
    out_activation: str = "identity"
    layer_norm: bool = False
    residual: bool = False
    compute_dtype: str = "float32"
    encoder: nn.Module = StateEncoder()

    def __post_init__(self):
        activation_function(self.activation)
        activation_function(self.out_activation)
        check_compute_dtype(self.compute_dtype)
        check_sizes("hidden_sizes", self.hidden_sizes)
        if self.condition_sizes is not None:
            check_sizes("condition_sizes", self.condition_sizes)
        if self.residual:
            check_residual_sizes(self.hidden_sizes)
        super().__post_init__()

    def setup(self) -> None:
        # Names of attributes are names of parameters in checkpoints.
        options: dict[str, Any] = dict(
            activation=self.activation, compute_dtype=self.compute_dtype
        )
        if self.condition_sizes is not None:
            self.condition = MLP(
                self.condition_sizes[-1], self.condition_sizes[:-1], **options
            )
        self.time_embedding = TimeEmbedding(self.time_dim)
        trunk = ResidualMLP if self.residual else MLP
        self.mean = trunk(
            self.chunk * self.action_dim,
            self.hidden_sizes,
            out_activation=self.out_activation,
            layer_norm=self.layer_norm,
            **options,
        )

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
        parts = [
            x.reshape(batch, -1),
            jnp.broadcast_to(embedding, (batch, self.time_dim)),
            condition,
        ]
        return self.mean(jnp.concatenate(parts, axis=-1)).reshape(x.shape)


def _layer_norm(epsilon: float, name: str) -> nn.LayerNorm:
    # The two-pass variance is accurate in float32 even if the mean is large.
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, name=name)
