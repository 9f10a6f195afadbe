"""The network of Gaussian policies over action chunks."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from dppo_jax.errors import SettingsError
from dppo_jax.networks.encoders import StateEncoder
from dppo_jax.networks.mlp import (
    MLP,
    ResidualMLP,
    activation_function,
    check_compute_dtype,
    check_residual_sizes,
    check_sizes,
)
from dppo_jax.networks.std import check_std, fixed_std, log_variance
from dppo_jax.types import Array, Obs


class GaussianMLP(nn.Module):
    """A Gaussian over action chunks: obs -> (mean, std), both [B, Ta, Da].

    action_dim: Da.
    chunk: Ta.
    hidden_sizes: with `residual`, an odd number of equal sizes if `fixed_std` is set.
        Otherwise an even number, equal apart from the last, which is the output size of
        the trunk that mean and standard deviation share.
    tanh_output: squash the mean into (-1, 1).
    fixed_std: the standard deviation; None: the network predicts it.
    learn_fixed_std: train one log-variance per action dimension, starting at
        `fixed_std`.
    std_min, std_max: bounds of a learned or predicted standard deviation.
    compute_dtype: of the hidden layers, see `mlp.COMPUTE_DTYPES`.
    encoder: obs -> features [B, F], see `networks.encoders`.

    Raises:
        SettingsError: invalid or contradictory sizes, names or standard deviations.
    """

    action_dim: int
    chunk: int
    hidden_sizes: Sequence[int] = (256, 256, 256)
    activation: str = "mish"
    tanh_output: bool = True
    residual: bool = False
    layer_norm: bool = False
    fixed_std: float | None = None
    learn_fixed_std: bool = False
    std_min: float = 0.01
    std_max: float = 1.0
    compute_dtype: str = "float32"
    encoder: nn.Module = StateEncoder()

    def __post_init__(self):
        activation_function(self.activation)
        check_compute_dtype(self.compute_dtype)
        check_sizes("hidden_sizes", self.hidden_sizes)
        check_std(self)
        if self.residual and self.fixed_std is not None:
            check_residual_sizes(self.hidden_sizes)
        elif self.residual and (
            len(self.hidden_sizes) % 2 or len(set(self.hidden_sizes[:-1])) != 1
        ):
            raise SettingsError(
                f"hidden_sizes={tuple(self.hidden_sizes)} do not suit a residual "
                "network with a predicted standard deviation: give 2, 4, 6, ... sizes "
                "that are equal apart from the last, or set fixed_std."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, obs: Obs) -> tuple[Array, Array]:
        trunk = ResidualMLP if self.residual else MLP
        shape = (-1, self.chunk, self.action_dim)
        features = self.chunk * self.action_dim
        dtype = self.compute_dtype
        x = self.encoder(obs)
        if self.fixed_std is None:
            x = trunk(
                self.hidden_sizes[-1],
                self.hidden_sizes[:-1],
                activation=self.activation,
                out_activation=self.activation,
                layer_norm=self.layer_norm,
                layer_norm_out=self.layer_norm,
                compute_dtype=dtype,
                name="base",
            )(x)
            mean, predicted = (
                MLP(features, (), compute_dtype=dtype, name=name)(x)
                for name in ("mean", "log_variance")
            )
            std = self._predicted_std(predicted)
        else:
            mean = trunk(
                features,
                self.hidden_sizes,
                activation=self.activation,
                layer_norm=self.layer_norm,
                compute_dtype=dtype,
                name="mean",
            )(x)
            std = fixed_std(self, self.action_dim)
            std = jnp.broadcast_to(std, mean.reshape(shape).shape)
        if self.tanh_output:
            mean = jnp.tanh(mean)
        return mean.reshape(shape), std.reshape(shape)

    def _predicted_std(self, x: Array) -> Array:
        low, high = log_variance(self.std_min), log_variance(self.std_max)
        return jnp.exp(0.5 * (low + 0.5 * (high - low) * (jnp.tanh(x) + 1)))
