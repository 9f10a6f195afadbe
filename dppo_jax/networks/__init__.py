"""Encoders, perceptrons, critics and Gaussian networks, as flax modules."""

from dppo_jax.networks.augmentation import random_shifts
from dppo_jax.networks.critics import StateActionCritic, StateCritic, random_members
from dppo_jax.networks.encoders import StateEncoder
from dppo_jax.networks.gaussian import GaussianMLP
from dppo_jax.networks.gmm import MixtureMLP
from dppo_jax.networks.mlp import MLP, DiffusionMLP, ResidualMLP, SinusoidalEmbedding
from dppo_jax.networks.transformer import GaussianTransformer, MixtureTransformer
from dppo_jax.networks.unet import DiffusionUNet
from dppo_jax.networks.vision import ViTEncoder

__all__ = [
    "DiffusionMLP",
    "DiffusionUNet",
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
    "ViTEncoder",
    "random_members",
    "random_shifts",
]
