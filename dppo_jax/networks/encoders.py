"""Encoders: modules obs -> features [B, F] that extract a network's inputs.

A network holds one in its attribute `encoder`, so the same perceptron can read states
or, with another encoder, images. The parameters of an encoder are under the name
`encoder` in those of its network.
"""

import chex
import flax.linen as nn

from dppo_jax.errors import SettingsError
from dppo_jax.types import Array, Obs


class StateEncoder(nn.Module):
    """`obs["state"]` [B, To, Do] -> [B, To * Do], the newest state last.

    It has no parameters and ignores other entries of the observation.

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
