"""Reads reference cases, and makes our networks from their settings.

A case is one `.npz` file; the README beside the files explains its keys. The names of
settings, and the defaults of those that a case leaves out, are those of the reference's
constructors.
"""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from dppo_jax.interop import params_from_reference, params_to_reference
from dppo_jax.interop.reference_encoder import infer_encoder
from dppo_jax.networks import (
    DiffusionMLP,
    DiffusionUNet,
    GaussianMLP,
    GaussianTransformer,
    MixtureMLP,
    MixtureTransformer,
    StateActionCritic,
    StateCritic,
    ViTEncoder,
)

# Relative tolerances for float32. Absolute tolerances are a tenth of them, times the
# largest entry of what is compared.
NETWORK, CHAIN, LOSS, GRADIENT = 1e-5, 1e-4, 1e-5, 1e-4


class Case(NamedTuple):
    """name: file name without suffix. config: settings. arrays: all other entries."""

    name: str
    config: dict
    arrays: dict[str, np.ndarray]

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays under `prefix`, in the order of their names, without it."""
        return {
            key.removeprefix(prefix): self.arrays[key]
            for key in sorted(self.arrays)
            if key.startswith(prefix)
        }

    def params(self, module: str):
        """Flax parameters of one module of the case."""
        return params_from_reference(self.arrays, prefix=f"param/{module}/")

    def obs(self) -> dict[str, np.ndarray]:
        """The observation of the case, its channels last."""
        obs = {"state": self.arrays["in/state"]}
        if "in/rgb" in self.arrays:
            obs["rgb"] = np.moveaxis(self.arrays["in/rgb"], 2, -1)
        return obs


def read_case(path: Path) -> Case:
    """Read one case; nothing is unpickled."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    config = arrays.pop("config", None)
    return Case(path.stem, {} if config is None else json.loads(str(config)), arrays)


def assert_close(actual, expected, tolerance: float, name: str, scale: float = 1.0):
    """Compare arrays; `scale` multiplies the absolute tolerance."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, name
    floor = 0.1 * tolerance * scale * max(1.0, np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(
        actual, expected, rtol=tolerance, atol=floor, err_msg=name
    )


def assert_gradients_close(case: Case, prefix: str, gradients, scale: float = 1.0):
    """Compare gradients, named as in torch, with those recorded under `prefix`.

    The absolute tolerance depends on the largest entry of the whole gradient, and above
    1 on that of the same array, because far smaller entries are sums of terms that
    cancel. Sixteen times the precision of float32 is what such sums differ by.
    """
    recorded = case.group(prefix)
    ours = params_to_reference(gradients)
    assert recorded and set(recorded) <= set(ours)
    largest = max(np.abs(value).max() for value in recorded.values())
    floor = 0.1 * GRADIENT * scale * min(1.0, largest) + 1e-9
    precision = 16 * np.finfo(np.float32).eps
    for name, value in recorded.items():
        atol = max(floor, precision * np.abs(value).max())
        np.testing.assert_allclose(
            ours[name], value, rtol=GRADIENT, atol=atol, err_msg=prefix + name
        )
    for name in set(ours) - set(recorded):
        assert not np.any(ours[name]), f"{prefix}{name} has no recorded gradient"


def sum_of_squares(network, *inputs):
    """The scalar, as a function of params, whose gradient the network cases record."""

    def scalar(params):
        outputs = jax.tree.leaves(network.apply(params, *inputs))
        return sum((output**2).sum() for output in outputs)

    return scalar


def diffusion_mlp(config: dict) -> DiffusionMLP:
    """The denoiser that the reference builds from the same settings."""
    _refuse_dropout(config)
    residual = config.get("residual_style", False)
    return DiffusionMLP(
        action_dim=config["action_dim"],
        chunk=config["horizon_steps"],
        time_dim=config.get("time_dim", 16),
        hidden_sizes=_hidden_sizes(config.get("mlp_dims", [256, 256]), residual),
        condition_sizes=config.get("cond_mlp_dims"),
        activation=config.get("activation_type", "Mish"),
        out_activation=config.get("out_activation_type", "Identity"),
        layer_norm=config.get("use_layernorm", False),
        residual=residual,
    )


def diffusion_unet(config: dict, chunk: int) -> DiffusionUNet:
    """The U-Net that the reference builds; a chunk of any length goes through it."""
    condition_sizes = config.get("cond_mlp_dims")
    smaller_encoder = config.get("smaller_encoder", False)
    if condition_sizes is not None:
        hidden = _hidden_sizes(condition_sizes[:-1], residual=True)
        condition_sizes = (*hidden, condition_sizes[-1])
    return DiffusionUNet(
        action_dim=config["action_dim"],
        chunk=chunk,
        time_dim=config.get("diffusion_step_embed_dim", 32),
        dim=config.get("dim", 32),
        dim_mults=tuple(config.get("dim_mults", (1, 2, 4, 8))),
        kernel_size=config.get("kernel_size", 5),
        num_groups=config.get("n_groups"),
        group_norm_eps=config.get("groupnorm_eps", 1e-5),
        predict_scale=config.get("cond_predict_scale", False),
        larger_encoder=condition_sizes is None and not smaller_encoder,
        condition_sizes=condition_sizes,
        activation=config.get("activation_type", "Mish"),
    )


def denoiser(case: Case) -> DiffusionMLP | DiffusionUNet:
    """The denoiser of a case of a whole policy, which names its architecture."""
    arch, config = case.config.get("arch", "diffusion_mlp"), case.config["net"]
    if arch == "unet1d":
        return diffusion_unet(config, case.config["horizon_steps"])
    if arch != "diffusion_mlp" or "action_dim" not in config:
        pytest.skip(f"{case.name}: no network of the kind {arch}")
    return diffusion_mlp(config)


def gaussian_mlp(config: dict) -> GaussianMLP:
    """The Gaussian policy network that the reference builds."""
    _refuse_dropout(config)
    residual = config.get("residual_style", False)
    sizes = config.get("mlp_dims", [256, 256, 256])
    if config.get("fixed_std") is None:
        sizes = (*_hidden_sizes(sizes[:-1], residual), sizes[-1])
    else:
        sizes = _hidden_sizes(sizes, residual)
    return GaussianMLP(
        action_dim=config["action_dim"],
        chunk=config["horizon_steps"],
        hidden_sizes=sizes,
        activation=config.get("activation_type", "Mish"),
        tanh_output=config.get("tanh_output", True),
        residual=residual,
        layer_norm=config.get("use_layernorm", False),
        fixed_std=config.get("fixed_std"),
        learn_fixed_std=config.get("learn_fixed_std", False),
        std_min=config.get("std_min", 0.01),
        std_max=config.get("std_max", 1.0),
    )


def gaussian_transformer(config: dict) -> GaussianTransformer:
    """The Gaussian policy network of one token per action."""
    return GaussianTransformer(**_transformer_settings(config))


def mixture(config: dict) -> MixtureMLP | MixtureTransformer:
    """The network of a mixture; names of settings tell which."""
    num_modes = config.get("num_modes", 5)
    if any(name.startswith("transformer_") for name in config):
        return MixtureTransformer(num_modes=num_modes, **_transformer_settings(config))
    residual = config.get("residual_style", False)
    return MixtureMLP(
        num_modes=num_modes,
        hidden_sizes=_hidden_sizes(config.get("mlp_dims", [256, 256, 256]), residual),
        activation=config.get("activation_type", "Mish"),
        residual=residual,
        layer_norm=config.get("use_layernorm", False),
        **_head_settings(config),
    )


def _transformer_settings(config: dict) -> dict:
    return dict(
        embed_dim=config.get("transformer_embed_dim", 256),
        num_heads=config.get("transformer_num_heads", 8),
        num_layers=config.get("transformer_num_layers", 6),
        activation=config.get("transformer_activation", "gelu"),
        embedding_dropout=config.get("p_drop_emb", 0.0),
        attention_dropout=config.get("p_drop_attn", 0.0),
        **_head_settings(config),
    )


def _head_settings(config: dict) -> dict:
    return dict(
        action_dim=config["action_dim"],
        chunk=config["horizon_steps"],
        fixed_std=config.get("fixed_std"),
        learn_fixed_std=config.get("learn_fixed_std", False),
        std_min=config.get("std_min", 0.01),
        std_max=config.get("std_max", 1.0),
    )


def state_critic(config: dict) -> StateCritic:
    """The value network that the reference builds."""
    residual = config.get("residual_style", False)
    return StateCritic(
        hidden_sizes=_hidden_sizes(config["mlp_dims"], residual),
        activation=config.get("activation_type", "Mish"),
        layer_norm=config.get("use_layernorm", False),
        residual=residual,
    )


def state_action_critic(config: dict) -> StateActionCritic:
    """The Q networks of the reference, which spells one option `residual_tyle`."""
    residual = config.get("residual_tyle", False)
    return StateActionCritic(
        hidden_sizes=_hidden_sizes(config["mlp_dims"], residual),
        activation=config.get("activation_type", "Mish"),
        layer_norm=config.get("use_layernorm", False),
        residual=residual,
        num_critics=2 if config.get("double_q", True) else 1,
    )


def vit_encoder(case: Case, *, features: int = 0) -> ViTEncoder:
    """The image encoder that the reference builds; its patches have 8 x 8 pixels.

    What a case leaves out of its transformer is read off the weights.

    Args:
        features: the default of `spatial_emb`; 0 has no spatial embedding.
    """
    config = case.config
    _refuse_dropout(config)
    vit = config.get("vit", {})
    told, _ = infer_encoder(case.params("net")["params"]["encoder"])
    settings = {name.removeprefix("vit."): told[name] for name in told if "." in name}
    settings |= {name: vit[name] for name in ("depth", "embed_dim") if name in vit}
    if "embed_style" in vit:
        settings["patch_layers"] = {"embed1": 1, "embed2": 2}[vit["embed_style"]]
        two = settings["patch_layers"] == 2
        settings["patch_norm"] = two and bool(vit.get("embed_norm", 0))
    features = config.get("spatial_emb", features)
    return ViTEncoder(
        **settings
        | dict(
            image_size=case.obs()["rgb"].shape[2:4],
            num_cameras=config.get("num_img", 1),
            image_history=config.get("img_cond_steps", 1),
            num_heads=vit.get("num_heads", 4),
            patch_size=8,
            pooling="spatial" if features else "flat",
            features=features or config.get("visual_feature_dim", 128),
        )
    )


def _hidden_sizes(sizes: list[int], residual: bool) -> tuple[int, ...]:
    # The reference takes the width of a residual network from the first size and only
    # counts the others; here they must be equal.
    return (sizes[0],) * len(sizes) if residual else tuple(sizes)


def _refuse_dropout(config: dict) -> None:
    if config.get("dropout", 0):
        pytest.skip(f"no network here has dropout (dropout={config['dropout']})")
