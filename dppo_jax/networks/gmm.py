"""Gaussian mixtures over action chunks from perceptrons."""

from collections.abc import Sequence
from typing import Any

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
from dppo_jax.networks.std import check_std, clamped_std, fixed_std
from dppo_jax.types import Array, Obs


class MixtureMLP(nn.Module):
    """A mixture of M Gaussians over action chunks, from separate perceptrons.

    obs -> (means [B, M, Ta, Da], standard deviations of that shape, logits [B, M] of
    the modes). Means, log-variances and logits each have a perceptron with the same
    hidden layers, as in the published DPPO code (github irom-princeton/dppo,
    model/common/mlp_gmm.py).

    action_dim: Da.
    chunk: Ta.
    num_modes: M.
    hidden_sizes: with `residual`, an odd number of equal sizes.
    tanh_output: squash the means into (-1, 1).
    fixed_std: the standard deviation; None lets a network predict the log-variances,
        which are clamped to the bounds.
    learn_fixed_std: train one log-variance per mode and action dimension from
        `fixed_std` on.
    std_min, std_max: bounds of a learned or predicted standard deviation.
    compute_dtype: of the hidden layers, "float32" or "bfloat16".
    encoder: obs -> features [B, F], see `networks.encoders`.

    Raises:
        SettingsError: for sizes, names or standard deviations that do not fit together.
    """

    action_dim: int
    chunk: int
    num_modes: int = 5
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
        if self.residual:
            check_residual_sizes(self.hidden_sizes)
        check_std(self)
        check_modes(self.num_modes)
        super().__post_init__()

    @nn.compact
    def __call__(self, obs: Obs) -> tuple[Array, Array, Array]:
        x = self.encoder(obs)
        shape = (self.num_modes, self.chunk, self.action_dim)

        def perceptron(features: int, name: str) -> Array:
            trunk = ResidualMLP if self.residual else MLP
            return trunk(
                features,
                self.hidden_sizes,
                activation=self.activation,
                layer_norm=self.layer_norm,
                compute_dtype=self.compute_dtype,
                name=name,
            )(x)

        size = self.num_modes * self.chunk * self.action_dim
        means = perceptron(size, "mean").reshape(-1, *shape)
        if self.tanh_output:
            means = jnp.tanh(means)
        if self.fixed_std is None:
            predicted = perceptron(size, "log_variance")
            stds = clamped_std(self, predicted).reshape(means.shape)
        else:
            stds = jnp.broadcast_to(mode_stds(self), means.shape)
        return means, stds, perceptron(self.num_modes, "logits")


def check_modes(num_modes: int) -> None:
    """Refuse a mixture without modes."""
    if num_modes < 1:
        raise SettingsError(f"num_modes={num_modes} must be at least 1.")


def mode_stds(head: Any) -> Array:
    """[M, 1, Da] standard deviations that depend on no observation."""
    num_modes, action_dim = head.num_modes, head.action_dim
    return fixed_std(head, num_modes * action_dim).reshape(num_modes, 1, action_dim)
