"""Encoders: what a network reads of an observation.

An encoder is a module obs -> features [B, F]. A network holds one in its attribute
`encoder`, so the same perceptron can read states or, with another encoder, images. An
encoder that has parameters keeps them under the name `encoder` of its network.
"""

import chex
import flax.linen as nn

from dppo_jax.errors import SettingsError
from dppo_jax.types import Array, Obs


class StateEncoder(nn.Module):
    """`obs["state"]` [B, To, Do] -> [B, To * Do], the most recent entry last.

    It has no parameters, and other entries of the observation are not read.

    Raises:
        SettingsError: an observation without a state.
    """

    @nn.compact
    def __call__(self, obs: Obs) -> Array:
        if "state" not in obs:
            raise SettingsError(
                f"StateEncoder reads obs['state'], but the observation has "
                f"{sorted(obs)}; give the network an encoder that reads those."
            )
        state = obs["state"]
        chex.assert_rank(state, 3)
        return state.reshape(state.shape[0], -1)
