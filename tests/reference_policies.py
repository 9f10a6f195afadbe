"""Checks of outputs of the networks in whole checkpoints of the reference."""

import jax
import numpy as np
import pytest

from dppo_jax.diffusion import denoising
from dppo_jax.diffusion.chain import Encoded, sample_chain
from dppo_jax.interop import load_reference_checkpoint
from tests.reference_cases import (
    CHAIN,
    NETWORK,
    assert_close,
    diffusion_mlp,
    read_case,
    state_critic,
)
from tests.reference_losses import diffusion_settings


def check_pretrained(path, tmp_path):
    """Compare one evaluation of the averaged network."""
    case, checkpoint = read_case(path), _checkpoint_beside(path)
    assert checkpoint.stage == "pretrain"
    inputs = case.arrays["in/x"], case.arrays["in/t"], case.obs()
    output = diffusion_mlp(case.config["net"]).apply(checkpoint.params.base, *inputs)
    assert_close(output, case.arrays["out/y0"], NETWORK, "output")


def check_finetuned(path, tmp_path):
    """Compare a deterministic chain over both networks, and V(s)."""
    case, checkpoint = read_case(path), _checkpoint_beside(path)
    assert checkpoint.stage == "finetune"
    network = diffusion_mlp(case.config["net"])
    # A case leaves it out if it is the default of all fine-tuning in the reference.
    settings = {"randn_clip_value": 3} | case.config
    diffusion = denoising.make_diffusion(**diffusion_settings(settings))
    sampled = jax.jit(
        lambda draws: sample_chain(
            denoising.diffusion_chain(diffusion, network.apply),
            Encoded(checkpoint.params.base, case.obs()),
            lambda step: Encoded(checkpoint.params.tuned, case.obs()),
            draws,
            num_tuned=case.config["ft_denoising_steps"],
            min_std=0.0,
            deterministic=True,
        )
    )(np.stack(list(case.group("draw/").values())))
    assert_close(sampled.chain[:, -1], case.arrays["out/action"], CHAIN, "action")
    value = state_critic(case.config["critic"]).apply(checkpoint.critic, case.obs())
    assert_close(value[:, None], case.arrays["out/value"], NETWORK, "value")


def _checkpoint_beside(path):
    checkpoint = path.with_name(path.name.replace("_check.npz", ".pt"))
    if not checkpoint.is_file():
        pytest.skip(f"{path.stem}: needs {checkpoint.name}")
    return load_reference_checkpoint(checkpoint)
