"""Value networks: V(s) and Q(s, a)."""

from collections.abc import Sequence

import chex
import flax.linen as nn
import jax
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
from dppo_jax.types import Array, Obs, PyTree


class StateCritic(nn.Module):
    """V(s): obs -> [B].

    hidden_sizes: with `residual`, 1, 3, 5, ... equal sizes.
    activation: a name in `ACTIVATIONS`.
    layer_norm: normalise the hidden layers.
    residual: build the network from residual blocks.
    compute_dtype: of the hidden layers, see `mlp.COMPUTE_DTYPES`.
    encoder: obs -> features [B, F], see `networks.encoders`.

    Raises:
        SettingsError: invalid sizes or names.
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
    """An ensemble of Q(s, a): (obs, action [B, Ta, Da]) -> [num_critics, B].

    Every member has its own initialisation. Their parameters are stacked: every leaf
    has a leading axis [num_critics], and one batched network evaluates all members. See
    `random_members`.

    hidden_sizes, activation, layer_norm, residual, compute_dtype, encoder: as in
        `StateCritic`.
    num_critics: 2 gives the pair of clipped double Q-learning (Fujimoto et al. 2018),
        1 a single network.

    Raises:
        SettingsError: invalid sizes, names or `num_critics`.
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
            raise SettingsError(f"num_critics={self.num_critics} must be at least 1.")
        super().__post_init__()

    @nn.compact
    def __call__(self, obs: Obs, action: Array) -> Array:
        chex.assert_rank(action, 3)
        network = ResidualMLP if self.residual else MLP
        x = jnp.concatenate(
            [self.encoder(obs), action.reshape(action.shape[0], -1)], axis=-1
        )
        members = nn.vmap(
            network,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=self.num_critics,
        )
        values = members(
            1,
            self.hidden_sizes,
            activation=self.activation,
            layer_norm=self.layer_norm,
            compute_dtype=self.compute_dtype,
            name="members",
        )(x)
        return values[..., 0]


def random_members(key: Array, params: PyTree, num_members: int) -> PyTree:
    """Draw `num_members` different members of an ensemble at random.

    Args:
        params: of a `StateActionCritic`, whose members have leaves [num_critics, ...].
        num_members: at most num_critics; if equal, `params` is returned.

    Returns:
        Parameters for a critic with num_critics = num_members; an encoder stays whole.
    """
    members = params["params"]["members"]
    num_critics = jax.tree.leaves(members)[0].shape[0]
    if num_members == num_critics:
        return params
    index = jax.random.choice(key, num_critics, (num_members,), replace=False)
    drawn = jax.tree.map(lambda leaf: leaf[index], members)
    return {**params, "params": {**params["params"], "members": drawn}}


def _check_options(critic: StateCritic | StateActionCritic) -> None:
    activation_function(critic.activation)
    check_compute_dtype(critic.compute_dtype)
    check_sizes("hidden_sizes", critic.hidden_sizes)
    if critic.residual:
        check_residual_sizes(critic.hidden_sizes)
