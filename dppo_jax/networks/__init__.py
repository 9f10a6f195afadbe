"""Encoders, perceptrons, critics and Gaussian networks, as flax modules."""

from dppo_jax.networks.critics import StateActionCritic, StateCritic, random_members
from dppo_jax.networks.encoders import StateEncoder
from dppo_jax.networks.gaussian import GaussianMLP
from dppo_jax.networks.mlp import MLP, DiffusionMLP, ResidualMLP, SinusoidalEmbedding
from dppo_jax.networks.vision import ViTEncoder, random_shifts

__all__ = [
    "DiffusionMLP",
    "GaussianMLP",
    "MLP",
    "ResidualMLP",
    "SinusoidalEmbedding",
    "StateActionCritic",
    "StateCritic",
    "StateEncoder",
    "ViTEncoder",
    "random_members",
    "random_shifts",
]
