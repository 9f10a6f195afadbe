"""Diffusion Policy Policy Optimization (DPPO, arXiv 2409.00588) in JAX.

The names below are those that a notebook needs; their modules document them.
"""

from dppo_jax import envs, runtime
from dppo_jax.algorithms import ppo
from dppo_jax.algorithms.clone import make_pretrain
from dppo_jax.algorithms.ppo import make_ppo
from dppo_jax.controller import Controller
from dppo_jax.demonstrations import load_demonstrations
from dppo_jax.demonstrations.dataset import Episodes, Windows, windows
from dppo_jax.demonstrations.formats.dppo_npz import load_dppo_npz, save_dppo_npz
from dppo_jax.deploy import load_policy
from dppo_jax.diffusion.chain import move_log_prob, sample_chain
from dppo_jax.diffusion.denoising import Diffusion, cloning_loss, make_diffusion
from dppo_jax.diffusion.flow import flow_cloning, make_flow
from dppo_jax.diffusion.schedules import Schedule, ddim_schedule, ddpm_schedule
from dppo_jax.envs import check_env, make_task, vectorize
from dppo_jax.evaluate import make_evaluate, summarize
from dppo_jax.learning.chain_losses import policy_loss
from dppo_jax.learning.returns import gae
from dppo_jax.networks.critics import StateCritic
from dppo_jax.networks.gaussian import GaussianMLP
from dppo_jax.networks.mlp import DiffusionMLP
from dppo_jax.normalize import Normalizer, fit_normalizer, load_normalizer
from dppo_jax.policies import (
    ChainPolicy,
    PolicyParams,
    diffusion_policy,
    flow_policy,
    gaussian_policy,
)
from dppo_jax.training.break_files import load_break
from dppo_jax.training.loop import train
from dppo_jax.types import (
    Act,
    Algorithm,
    Env,
    TimeStep,
    Transition,
    VecEnv,
)

runtime.spare_a_thread()

__all__ = [
    "Act",
    "Algorithm",
    "ChainPolicy",
    "Controller",
    "Diffusion",
    "DiffusionMLP",
    "Env",
    "Episodes",
    "GaussianMLP",
    "Normalizer",
    "PolicyParams",
    "Schedule",
    "StateCritic",
    "TimeStep",
    "Transition",
    "VecEnv",
    "Windows",
    "check_env",
    "cloning_loss",
    "ddim_schedule",
    "ddpm_schedule",
    "diffusion_policy",
    "envs",
    "fit_normalizer",
    "flow_cloning",
    "flow_policy",
    "gae",
    "gaussian_policy",
    "load_break",
    "load_demonstrations",
    "load_dppo_npz",
    "load_normalizer",
    "load_policy",
    "make_diffusion",
    "make_evaluate",
    "make_flow",
    "make_ppo",
    "make_pretrain",
    "make_task",
    "move_log_prob",
    "policy_loss",
    "ppo",
    "sample_chain",
    "save_dppo_npz",
    "summarize",
    "train",
    "vectorize",
    "windows",
]
