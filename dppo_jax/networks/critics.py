"""Value networks: V(s) and Q(s, a)."""

from collections.abc import Sequence

import chex
import flax.linen as nn
import jax.numpy as jnp

from dppo_jax.networks.encoders import StateEncoder
from dppo_jax.networks.mlp import (
    MLP,
    ResidualMLP,
    activation_function,
    check_compute_dtype,
    check_residual_sizes,
    check_sizes,
)
from dppo_jax.types import Array, Obs


class StateCritic(nn.Module):
    """V(s): obs -> [B].

    hidden_sizes: with `residual`, 1, 3, 5, ... equal sizes.
    activation: a name in `ACTIVATIONS`.
    layer_norm: normalise the hidden layers.
    residual: build the network from residual blocks.
    compute_dtype: of the layers, "float32" or "bfloat16".
    encoder: obs -> features [B, F], see `networks.encoders`.

    Raises:
        ValueError: for sizes or names that no such network can be built from.
    """

    hidden_sizes: Sequence[int] = (256, 256, 256)
    activation: str = "mish"
    layer_norm: bool = False
    residual: bool = False
    compute_dtype: str = "float32"
    encoder: nn.Module = StateEncoder()

    def __post_init__(self):
        _check_options(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, obs: Obs) -> Array:
        network = ResidualMLP if self.residual else MLP
        value = network(
            1,
            self.hidden_sizes,
            activation=self.activation,
            layer_norm=self.layer_norm,
            compute_dtype=self.compute_dtype,
            name="value",
        )(self.encoder(obs))
        return value[:, 0]


class StateActionCritic(nn.Module):
    """Q(s, a): (obs, action [B, Ta, Da]) -> [num_critics, B].

    hidden_sizes, activation, layer_norm, residual, compute_dtype, encoder: as in
        `StateCritic`.
    num_critics: 2 gives the independent pair of clipped double Q-learning
        (Fujimoto et al. 2018), 1 a single network.

    Raises:
        ValueError: for sizes or names that no such network can be built from.
    """

    hidden_sizes: Sequence[int] = (256, 256, 256)
    activation: str = "mish"
    layer_norm: bool = False
    residual: bool = False
    num_critics: int = 2
    compute_dtype: str = "float32"
    encoder: nn.Module = StateEncoder()

    def __post_init__(self):
        _check_options(self)
        if self.num_critics < 1:
            raise ValueError(f"num_critics={self.num_critics} must be at least 1.")
        super().__post_init__()

    @nn.compact
    def __call__(self, obs: Obs, action: Array) -> Array:
        chex.assert_rank(action, 3)
        network = ResidualMLP if self.residual else MLP
        x = jnp.concatenate(
            [self.encoder(obs), action.reshape(action.shape[0], -1)], axis=-1
        )
        values = [
            network(
                1,
                self.hidden_sizes,
                activation=self.activation,
                layer_norm=self.layer_norm,
                compute_dtype=self.compute_dtype,
                name=f"q{i + 1}",
            )(x)
            for i in range(self.num_critics)
        ]
        return jnp.stack([value[:, 0] for value in values])


def _check_options(critic: StateCritic | StateActionCritic) -> None:
    activation_function(critic.activation)
    check_compute_dtype(critic.compute_dtype)
    check_sizes("hidden_sizes", critic.hidden_sizes)
    if critic.residual:
        check_residual_sizes(critic.hidden_sizes)
