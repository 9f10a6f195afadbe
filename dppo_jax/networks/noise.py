"""A network for the standard deviation of a policy's moves."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from dppo_jax.networks.mlp import (
    MLP,
    SinusoidalEmbedding,
    activation_function,
    check_sizes,
)
from dppo_jax.types import Array, PyTree


class NoiseMLP(nn.Module):
    """(time [B] or [1], condition) -> [B, Ta, Da], zero at first.

    As ReinFlow's noise network (arXiv 2505.22094) it reads the time and what the policy
    made of the observation, but not the sample. The last layer starts at zero, so that
    adding the network to a policy changes nothing.

    action_dim: Da.
    chunk: Ta.
    hidden_sizes: of its layers.
    activation: a name in `networks.mlp.ACTIVATIONS`.
    time_dim: size of the sinusoidal embedding of the time, even and at least 4.

    Raises:
        SettingsError: for sizes or names that no such network can be built from.
    """

    action_dim: int
    chunk: int
    hidden_sizes: Sequence[int] = (64, 64)
    activation: str = "tanh"
    time_dim: int = 16

    def __post_init__(self):
        activation_function(self.activation)
        check_sizes("noise.hidden_sizes", self.hidden_sizes)
        super().__post_init__()

    @nn.compact
    def __call__(self, time: Array, condition: PyTree) -> Array:
        parts = [x.reshape(x.shape[0], -1) for x in jax.tree.leaves(condition)]
        batch = parts[0].shape[0]
        embedding = SinusoidalEmbedding(self.time_dim)(time)
        x = jnp.concatenate(
            [jnp.broadcast_to(embedding, (batch, self.time_dim)), *parts], axis=-1
        )
        x = MLP(
            self.hidden_sizes[-1],
            self.hidden_sizes[:-1],
            activation=self.activation,
            out_activation=self.activation,
            name="hidden",
        )(x)
        x = nn.Dense(
            self.chunk * self.action_dim,
            kernel_init=nn.initializers.zeros,
            name="output",
        )(x)
        return x.reshape(batch, self.chunk, self.action_dim)
