"""Networks; they know nothing of reinforcement learning."""

from dppo_jax.networks.critics import StateActionCritic, StateCritic, random_members
from dppo_jax.networks.encoders import StateEncoder
from dppo_jax.networks.gaussian import GaussianMLP
from dppo_jax.networks.gmm import MixtureMLP
from dppo_jax.networks.mlp import MLP, DiffusionMLP, ResidualMLP, SinusoidalEmbedding
from dppo_jax.networks.transformer import GaussianTransformer, MixtureTransformer

__all__ = [
    "DiffusionMLP",
    "GaussianMLP",
    "GaussianTransformer",
    "MLP",
    "MixtureMLP",
    "MixtureTransformer",
    "ResidualMLP",
    "SinusoidalEmbedding",
    "StateActionCritic",
    "StateCritic",
    "StateEncoder",
    "random_members",
]
