"""Make a policy from a configuration."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from dppo_jax.diffusion import denoising, few_steps
from dppo_jax.diffusion import flow as flows
from dppo_jax.errors import SettingsError
from dppo_jax.networks import build as networks
from dppo_jax.networks.build_encoder import image_shape
from dppo_jax.networks.noise import NoiseMLP
from dppo_jax.policies.chain import ChainPolicy, diffusion_policy
from dppo_jax.policies.flow import flow_policy
from dppo_jax.policies.gaussian import gaussian_policy
from dppo_jax.policies.gmm import gmm_policy
from dppo_jax.policies.squashed import SquashedPolicy, squashed_policy
from dppo_jax.types import Array, Obs, PyTree

# The least noise level, from 0 to 1, at which a chain may start without a warning.
_LEAST_START = 0.9


def default_config() -> ConfigDict:
    """Settings of a policy; after training, only `sampling` may still change."""
    config = ConfigDict()
    # "diffusion", "flow", "gaussian", "gmm", or "squashed" (for sac)
    config.kind = "diffusion"
    config.chunk = 4  # Ta, predicted actions
    config.network = networks.default_config()
    config.diffusion = ConfigDict(
        dict(
            num_denoising_steps=20,  # K of training, and of sampling without DDIM
            predict_noise=True,  # False: the network predicts the clean action
            x0_clip=FieldReference(1.0, field_type=float),  # None: no bound
            beta_schedule="cosine",  # or "linear", from beta_start to beta_end
            beta_start=1e-4,
            beta_end=0.02,
            # Actions before the present one that the network predicts too, as LeRobot's
            # does. Chunks hold them at their end, and they are not executed.
            past_actions=0,
        )
    )
    config.flow = ConfigDict(
        dict(
            # Times at which a flow is cloned: "uniform", "logit-normal", or "discrete",
            # which are k / num_times.
            times="uniform",
            num_times=20,
            # What the network learns: "flow", velocities; "shortcut" or "mean_flow",
            # average velocities over steps, for one or few steps (see `few_steps`).
            cloning="flow",
            step_share=0.25,  # of the rows that learn steps of a length
            max_steps=128,  # 1 / max_steps is the shortest step of a shortcut
        )
    )
    # The standard deviation of a flow's moves. Equal bounds fix it; otherwise
    # fine-tuning adds a network that predicts it.
    config.noise = ConfigDict(
        dict(std_min=0.1, std_max=0.24, hidden_sizes=(64, 64), activation="tanh")
    )
    config.gaussian = ConfigDict(
        dict(
            fixed_std=FieldReference(0.1, field_type=float),  # None: predicted
            learn_fixed_std=False,  # fine-tuning changes fixed_std
            clone_std=True,  # False: no gradient of cloning for the deviation
            std_min=0.01,  # bounds of a predicted or learned deviation
            std_max=1.0,  # see std_min
            tanh_output=True,  # squash the mean to [-1, 1]
        )
    )
    # A mixture; standard deviations are those of each of its modes.
    config.gmm = ConfigDict(
        dict(
            num_modes=5,  # Gaussians of the mixture
            fixed_std=FieldReference(0.1, field_type=float),  # None: predicted
            learn_fixed_std=False,  # fine-tuning changes fixed_std
            clone_std=True,  # False: no gradient of cloning for the deviation
            std_min=0.01,  # bounds of a predicted or learned deviation
            std_max=1.0,  # see std_min
            tanh_output=True,  # squash the mean to [-1, 1]
        )
    )
    # Bounds of the standard deviation before tanh, e^-5 and e^2 as in the SAC paper.
    config.squashed = ConfigDict(dict(std_min=0.0067, std_max=7.39))
    # How a chain is sampled and scored; no weight depends on it.
    config.sampling = ConfigDict(
        dict(
            num_tuned_steps=10,  # K', the last moves, which fine-tuning changes
            min_std=0.1,  # exploration: floor of a chain's sampling std
            min_log_prob_std=0.1,  # stability: floor of the std in log-probs
            eta=1.0,  # noise of DDIM: 1 as in DDPM, 0 none
            draw_clip=3.0,  # bound of standard normal draws
            noise_clip=placeholder(float),  # bound of the predicted noise; None: none
            final_clip=placeholder(float),  # bound of the action; None: none
            ddim_steps=placeholder(int),  # K of a DDIM chain; None: DDPM
            # Which steps of training these are: "leading" as in the reference, or
            # "trailing", which begins at the noisiest one.
            ddim_spacing="leading",
            # The noise in a DDIM mean is that of the clipped action; False: that of the
            # output.
            rederive_noise=True,
            flow_steps=4,  # K of a flow, which has no use for the floors and eta
            mean_clip=FieldReference(1.0, field_type=float),  # of a flow's moves
        )
    )
    return config


def make_policy(config: ConfigDict, *, action_dim: int) -> ChainPolicy | SquashedPolicy:
    """Make the policy that a configuration describes.

    Args:
        config: `default_config` with changes.
        action_dim: Da.

    Returns:
        A policy; its `init` raises a SettingsError if the outputs of its network, which
        may be a user's own, have another shape than [B, Ta, Da].

    Raises:
        SettingsError: invalid or contradictory settings, which the message names.
    """
    sampling = config.sampling
    if not sampling.draw_clip > 0:
        raise SettingsError(f"draw_clip={sampling.draw_clip} must be positive.")
    sizes = dict(action_dim=action_dim, chunk=config.chunk)
    role, head = _role(config)
    network = networks.make_network(config.network, role=role, head=head, **sizes)
    policy = _make(config, network, action_dim)
    tells_length = config.kind == "flow" and config.flow.cloning != "flow"

    def init(key: Array, obs: Obs) -> PyTree:
        networks.check_outputs(
            network, obs, role=role, tells_length=tells_length, **sizes
        )
        return policy.init(key, obs)

    return policy._replace(init=init)


def _role(config: ConfigDict) -> tuple[str, dict[str, Any] | None]:
    """Return the role of a policy's network, and the settings of its output."""
    if config.kind == "gaussian":
        return "gaussian", dict(config.gaussian)
    if config.kind == "gmm":
        return "gmm", dict(config.gmm)
    if config.kind == "squashed":
        return "gaussian", dict(config.squashed) | dict(
            fixed_std=None, tanh_output=False
        )
    if config.kind not in ("diffusion", "flow"):
        raise SettingsError(
            f"model.kind={config.kind!r} is unknown; use 'diffusion', 'flow', "
            "'gaussian', 'gmm' or 'squashed'."
        )
    return "denoiser", None


def sampling_note(config: ConfigDict) -> str | None:
    """What is wrong with how a policy samples; None: nothing.

    Args:
        config: of the model.
    """
    num, steps = config.sampling.ddim_steps, config.diffusion.num_denoising_steps
    if config.kind != "diffusion" or num is None or num == steps:
        return None
    diffusion = {k: v for k, v in config.diffusion.items() if k != "past_actions"}
    spacing = config.sampling.ddim_spacing
    made = denoising.make_diffusion(**diffusion, ddim_steps=num, ddim_spacing=spacing)
    level = float(made.explore.noise[0])
    if level >= _LEAST_START:
        return None
    return (
        f"with ddim_steps={num} of {steps}, chains start at a noise level of "
        f"{level:.2f}, where samples of training are no pure noise, so most of the "
        "action is that noise; use more steps, or "
        "--config.model.sampling.ddim_spacing=trailing"
    )


def _make(
    config: ConfigDict, network: nn.Module, action_dim: int
) -> ChainPolicy | SquashedPolicy:
    sampling = config.sampling
    if config.kind in ("gaussian", "gmm"):
        make = gaussian_policy if config.kind == "gaussian" else gmm_policy
        head = config[config.kind]
        clone_std = head.clone_std
        if not clone_std and head.fixed_std is None:
            raise SettingsError(
                f"model.{config.kind}.clone_std=False leaves a standard deviation "
                f"alone that has a value of its own, but {config.kind}.fixed_std=None "
                "predicts it by layers that cloning changes; give fixed_std a value."
            )
        return make(network, draw_clip=sampling.draw_clip, clone_std=clone_std)
    if config.kind == "squashed":
        return squashed_policy(network)
    if config.kind == "flow":
        return _make_flow(config, network, action_dim)
    diffusion = dict(config.diffusion)
    past_actions = diffusion.pop("past_actions")
    return diffusion_policy(
        network,
        denoising.make_diffusion(
            **diffusion,
            ddim_steps=sampling.ddim_steps,
            eta=sampling.eta,
            noise_clip=sampling.noise_clip,
            draw_clip=sampling.draw_clip,
            final_clip=sampling.final_clip,
            min_log_prob_std=sampling.min_log_prob_std,
            rederive_noise=sampling.rederive_noise,
            ddim_spacing=sampling.ddim_spacing,
        ),
        chunk=config.chunk,
        action_dim=action_dim,
        num_tuned_steps=sampling.num_tuned_steps,
        min_std=sampling.min_std,
        past_actions=past_actions,
    )


def _make_flow(config: ConfigDict, network: nn.Module, action_dim: int) -> ChainPolicy:
    sampling, noise = config.sampling, config.noise
    for name in ("ddim_steps", "noise_clip"):
        if sampling[name] is not None:
            raise SettingsError(
                f"sampling.{name}={sampling[name]} is for model.kind='diffusion'; use "
                "None, and sampling.flow_steps for the steps of a flow."
            )
    noise_network = None
    if noise.std_min < noise.std_max:
        noise_network = NoiseMLP(
            action_dim=action_dim,
            chunk=config.chunk,
            hidden_sizes=noise.hidden_sizes,
            activation=noise.activation,
        )
    return flow_policy(
        network,
        flows.make_flow(
            num_steps=sampling.flow_steps,
            std_min=noise.std_min,
            std_max=noise.std_max,
            mean_clip=sampling.mean_clip,
            draw_clip=sampling.draw_clip,
            final_clip=sampling.final_clip,
        ),
        _flow_cloning(config),
        chunk=config.chunk,
        action_dim=action_dim,
        num_tuned_steps=sampling.num_tuned_steps,
        noise_network=noise_network,
    )


def _flow_cloning(config: ConfigDict) -> denoising.Cloning:
    flow, num_steps = config.flow, config.sampling.flow_steps
    times = dict(times=flow.times, num_times=flow.num_times)
    if flow.cloning == "flow":
        return flows.flow_cloning(**times)
    if flow.cloning == "mean_flow":
        return few_steps.mean_flow_cloning(**times, step_share=flow.step_share)
    if flow.cloning != "shortcut":
        raise SettingsError(
            f"flow.cloning={flow.cloning!r} is unknown; use 'flow', 'shortcut' or "
            "'mean_flow'."
        )
    if num_steps & (num_steps - 1) or num_steps >= flow.max_steps:
        raise SettingsError(
            f"sampling.flow_steps={num_steps} must be a power of two below "
            f"flow.max_steps={flow.max_steps}: flow.cloning='shortcut' teaches steps "
            "of 1, 1/2, 1/4, ... alone; change one, or use 'mean_flow'."
        )
    return few_steps.shortcut_cloning(
        **times, step_share=flow.step_share, max_steps=flow.max_steps
    )


def defaults_of(saved: Mapping[str, Any]) -> ConfigDict:
    """Defaults of the settings in a `config.json` from which a policy is made.

    Args:
        saved: its content; it decides of which kind of network the settings are.
    """
    config = ConfigDict()
    config.model, config.env = default_config(), ConfigDict(dict(history=1))
    model = saved.get("model")
    network = model.get("network") if isinstance(model, Mapping) else None
    kind = network.get("kind") if isinstance(network, Mapping) else None
    if isinstance(kind, str) and kind in networks.NETWORKS:
        config.model.network = networks.default_config(kind)
    return config


def make_saved_policy(
    model: Mapping[str, Any], *, action_dim: int
) -> ChainPolicy | SquashedPolicy:
    """As `make_policy`, from settings that were read from a `config.json`."""
    return make_policy(ConfigDict(model), action_dim=action_dim)


def num_executable(model: Mapping[str, Any] | ConfigDict) -> int:
    """How many actions of a chunk may be executed: those from the present one on."""
    past = model["diffusion"].get("past_actions", 0)
    return model["chunk"] - (past if model["kind"] == "diffusion" else 0)


def obs_like(
    model: Mapping[str, Any] | ConfigDict | None, *, history: int, obs_dim: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and type of one observation that a policy reads, [1, ...].

    Args:
        model: `default_config` with changes; without an encoder only the state counts.
        history: To.
        obs_dim: Do.
    """
    encoder = ((model or {}).get("network") or {}).get("encoder")
    obs = {"state": jax.ShapeDtypeStruct((1, history, obs_dim), jnp.float32)}
    images = image_shape(encoder)
    if images is not None:
        obs["rgb"] = jax.ShapeDtypeStruct((1, *images), jnp.uint8)
    return obs
