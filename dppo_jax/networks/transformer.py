"""Transformers over the actions of a chunk: a Gaussian or a mixture of Gaussians.

Every action of a chunk is a token that knows nothing but its position. Decoder layers
let it read the other tokens and one token made of the observation, and a linear layer
makes the outputs of an action of its token. Structure, initial weights (normal with a
standard deviation of 0.02, biases zero) and defaults are those of the published DPPO
code (github irom-princeton/dppo, model/common/transformer.py). It normalises before
each part of a layer, as Xiong et al. (2020, arXiv 2002.04745) recommend.
"""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.errors import SettingsError
from dppo_jax.networks.dropout import check_rate, drop
from dppo_jax.networks.encoders import StateEncoder
from dppo_jax.networks.gmm import check_modes, mode_stds
from dppo_jax.networks.mlp import Linear, activation_function, check_compute_dtype
from dppo_jax.networks.std import check_std, clamped_std, fixed_std
from dppo_jax.types import Array, Obs

_INITIAL = nn.initializers.normal(0.02)
_dense = functools.partial(nn.Dense, kernel_init=_INITIAL)
_layer_norm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)


class Attention(nn.Module):
    """Attention with several heads (Vaswani et al. 2017, section 3.2).

    num_heads: that share the E entries of a token.
    dropout: share of the attention weights that is dropped.
    compute_dtype: of the products; weights are normalised in float32.
    """

    num_heads: int
    dropout: float
    compute_dtype: str

    @nn.compact
    def __call__(
        self, x: Array, memory: Array | None = None, mask: Array | None = None
    ) -> Array:
        """Let tokens read others.

        Args:
            x: [B, T, E] the tokens that read.
            memory: [B, S, E] those that are read; None: `x` itself.
            mask: [T, S], true where a token may be read; None: everywhere.

        Returns:
            [B, T, E].
        """
        size, dtype = x.shape[-1], self.compute_dtype
        kernel = self.param("in_kernel", _INITIAL, (size, 3 * size)).astype(dtype)
        bias = self.param("in_bias", nn.initializers.zeros, (3 * size,)).astype(dtype)
        x = x.astype(dtype)
        if memory is None:
            query, key, value = jnp.split(x @ kernel + bias, 3, axis=-1)
        else:
            query = x @ kernel[:, :size] + bias[:size]
            read = memory.astype(dtype) @ kernel[:, size:] + bias[size:]
            key, value = jnp.split(read, 2, axis=-1)
        query, key, value = (
            y.reshape(*y.shape[:-1], self.num_heads, size // self.num_heads)
            for y in (query, key, value)
        )
        scores = jnp.einsum("bthd,bshd->bhts", query, key).astype(jnp.float32)
        scores = scores / np.sqrt(size // self.num_heads)
        if mask is not None:
            scores = jnp.where(mask, scores, -jnp.inf)
        weights = drop(self, self.dropout, jax.nn.softmax(scores))
        y = jnp.einsum("bhts,bshd->bthd", weights.astype(dtype), value)
        return _dense(size, dtype=dtype, name="out")(y.reshape(x.shape))


class DecoderLayer(nn.Module):
    """Attention among tokens, attention to a memory, and a perceptron, each added.

    num_heads, compute_dtype: as in `Attention`.
    dropout: share of the attention weights, of the hidden units and of what is added.
    """

    num_heads: int
    activation: str
    dropout: float
    compute_dtype: str

    @nn.compact
    def __call__(self, x: Array, memory: Array, mask: Array | None) -> Array:
        size = x.shape[-1]
        attention = functools.partial(
            Attention, self.num_heads, self.dropout, self.compute_dtype
        )
        dense = functools.partial(_dense, dtype=self.compute_dtype)
        y = attention(name="self_attention")(_layer_norm(name="norm_1")(x), mask=mask)
        x = x + drop(self, self.dropout, y)
        y = attention(name="cross_attention")(_layer_norm(name="norm_2")(x), memory)
        x = x + drop(self, self.dropout, y)
        y = dense(4 * size, name="linear_1")(_layer_norm(name="norm_3")(x))
        y = drop(self, self.dropout, activation_function(self.activation)(y))
        y = dense(size, name="linear_2")(y)
        return x + drop(self, self.dropout, y)


class ChunkTransformer(nn.Module):
    """features [B, F] -> outputs [B, Ta, outputs] and final tokens [B, Ta, E].

    outputs: numbers for every action of a chunk.
    chunk: Ta.
    Others: see `GaussianTransformer`.
    """

    outputs: int
    chunk: int
    embed_dim: int
    num_heads: int
    num_layers: int
    activation: str
    causal: bool
    embedding_dropout: float
    attention_dropout: float
    compute_dtype: str

    @nn.compact
    def __call__(self, features: Array) -> tuple[Array, Array]:
        chex.assert_rank(features, 2)
        size = self.embed_dim
        dense = functools.partial(_dense, dtype=self.compute_dtype)
        memory = dense(size, name="observation")(features)[:, None]
        memory = memory + self.param("observation_position", _INITIAL, (1, 1, size))
        memory = drop(self, self.embedding_dropout, memory)
        memory = dense(4 * size, name="encoder_1")(memory)
        memory = dense(size, name="encoder_2")(jax.nn.mish(memory))

        x = self.param("position", _INITIAL, (1, self.chunk, size))
        x = jnp.broadcast_to(x, (len(features), self.chunk, size))
        x = drop(self, self.embedding_dropout, x)
        mask = jnp.tri(self.chunk, dtype=bool) if self.causal else None
        for i in range(self.num_layers):
            x = DecoderLayer(
                self.num_heads,
                self.activation,
                self.attention_dropout,
                self.compute_dtype,
                name=f"layer_{i}",
            )(x, memory, mask)
        x = _layer_norm(name="norm")(x)
        return _dense(self.outputs, name="head")(x), x


class GaussianTransformer(nn.Module):
    """A Gaussian over action chunks: obs -> (mean, std), both [B, Ta, Da].

    action_dim: Da.
    chunk: Ta.
    embed_dim: E, the size of a token, a multiple of `num_heads`.
    num_heads: of each attention.
    num_layers: decoder layers.
    activation: of the perceptrons in the layers, a name in `ACTIVATIONS`.
    causal: an action reads earlier actions alone; otherwise all.
    embedding_dropout: share of the entries of tokens that is dropped before the first
        layer.
    attention_dropout: share that the layers drop, see `DecoderLayer`. Both are for
        cloning alone, see `networks.dropout`.
    tanh_output: squash the mean into (-1, 1).
    fixed_std: the standard deviation; None lets the network predict log-variances,
        which are clamped to the bounds.
    learn_fixed_std: train one log-variance per action dimension from `fixed_std` on.
    std_min, std_max: bounds of a learned or predicted standard deviation.
    compute_dtype: of the layers before the last, "float32" or "bfloat16".
    encoder: obs -> features [B, F], see `networks.encoders`; they are one token.

    Raises:
        SettingsError: for sizes, names or standard deviations that do not fit together.
    """

    action_dim: int
    chunk: int
    embed_dim: int = 256
    num_heads: int = 8
    num_layers: int = 6
    activation: str = "gelu"
    causal: bool = False
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    tanh_output: bool = True
    fixed_std: float | None = None
    learn_fixed_std: bool = False
    std_min: float = 0.01
    std_max: float = 1.0
    compute_dtype: str = "float32"
    encoder: nn.Module = StateEncoder()

    def __post_init__(self):
        _check_options(self)
        super().__post_init__()

    @property
    def has_dropout(self) -> bool:
        """See `networks.dropout`."""
        return _has_dropout(self)

    @nn.compact
    def __call__(self, obs: Obs) -> tuple[Array, Array]:
        predicts = self.fixed_std is None
        outputs, _ = _decode(self, obs, self.action_dim * (1 + predicts))
        mean = outputs[..., : self.action_dim]
        if self.tanh_output:
            mean = jnp.tanh(mean)
        if predicts:
            return mean, clamped_std(self, outputs[..., self.action_dim :])
        return mean, jnp.broadcast_to(fixed_std(self, self.action_dim), mean.shape)


class MixtureTransformer(nn.Module):
    """A mixture of M Gaussians over action chunks.

    obs -> (means [B, M, Ta, Da], standard deviations of that shape, logits [B, M] of
    the modes). The logits are linear in the final tokens of the whole chunk. The
    published code cannot predict the standard deviation of a mixture, because it
    leaves the last M of its log-variances out; here all are used.

    num_modes: M.
    learn_fixed_std: train one log-variance per mode and action dimension from
        `fixed_std` on.
    Others: see `GaussianTransformer`.

    Raises:
        SettingsError: for sizes, names or standard deviations that do not fit together.
    """

    action_dim: int
    chunk: int
    num_modes: int = 5
    embed_dim: int = 256
    num_heads: int = 8
    num_layers: int = 6
    activation: str = "gelu"
    causal: bool = False
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    tanh_output: bool = True
    fixed_std: float | None = None
    learn_fixed_std: bool = False
    std_min: float = 0.01
    std_max: float = 1.0
    compute_dtype: str = "float32"
    encoder: nn.Module = StateEncoder()

    def __post_init__(self):
        _check_options(self)
        check_modes(self.num_modes)
        super().__post_init__()

    @property
    def has_dropout(self) -> bool:
        """See `networks.dropout`."""
        return _has_dropout(self)

    @nn.compact
    def __call__(self, obs: Obs) -> tuple[Array, Array, Array]:
        predicts, size = self.fixed_std is None, self.num_modes * self.action_dim
        outputs, tokens = _decode(self, obs, size * (1 + predicts))

        def of_modes(x: Array) -> Array:
            x = x.reshape(-1, self.chunk, self.num_modes, self.action_dim)
            return jnp.swapaxes(x, 1, 2)

        means = of_modes(outputs[..., :size])
        if self.tanh_output:
            means = jnp.tanh(means)
        if predicts:
            stds = of_modes(clamped_std(self, outputs[..., size:]))
        else:
            stds = jnp.broadcast_to(mode_stds(self), means.shape)
        tokens = tokens.reshape(len(tokens), -1)
        return means, stds, Linear(self.num_modes, name="logits")(tokens)


def _decode(network: Any, obs: Obs, outputs: int) -> tuple[Array, Array]:
    """Outputs [B, Ta, outputs] and final tokens [B, Ta, E] of a head's transformer."""
    return ChunkTransformer(
        outputs=outputs,
        chunk=network.chunk,
        embed_dim=network.embed_dim,
        num_heads=network.num_heads,
        num_layers=network.num_layers,
        activation=network.activation,
        causal=network.causal,
        embedding_dropout=network.embedding_dropout,
        attention_dropout=network.attention_dropout,
        compute_dtype=network.compute_dtype,
        name="transformer",
    )(network.encoder(obs))


def _has_dropout(network: Any) -> bool:
    return network.embedding_dropout > 0 or network.attention_dropout > 0


def _check_options(network: Any) -> None:
    activation_function(network.activation)
    check_compute_dtype(network.compute_dtype)
    check_std(network)
    for name in ("embed_dim", "num_heads", "num_layers"):
        if getattr(network, name) < 1:
            raise SettingsError(f"{name}={getattr(network, name)} must be at least 1.")
    if network.embed_dim % network.num_heads:
        raise SettingsError(
            f"embed_dim={network.embed_dim} must be a multiple of num_heads="
            f"{network.num_heads}, which share the entries of a token; change one."
        )
    for name in ("embedding_dropout", "attention_dropout"):
        check_rate(name, getattr(network, name))
