"""Make a policy's network from its configuration.

The network has one of three roles.

| role       | module                                                                  |
|------------|-------------------------------------------------------------------------|
| `denoiser` | (x [B, Ta, Da], time [B] or [1], obs) -> like x, in two halves:         |
|            | `encode(obs) -> condition`, `denoise(x, time, condition) -> like x`;    |
|            | time [B, 2] or [1, 2] for flows whose cloning tells the length of steps |
| `gaussian` | obs -> (mean, std), both [B, Ta, Da]                                    |
| `gmm`      | obs -> (means, stds, logits), [B, M, Ta, Da] twice and [B, M]           |
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from dppo_jax.errors import SettingsError
from dppo_jax.networks import build_encoder
from dppo_jax.networks.gaussian import GaussianMLP
from dppo_jax.networks.gmm import MixtureMLP
from dppo_jax.networks.mlp import DiffusionMLP
from dppo_jax.networks.transformer import GaussianTransformer, MixtureTransformer
from dppo_jax.networks.unet import DiffusionUNet
from dppo_jax.objects import call, is_reference, load_object
from dppo_jax.types import Obs

ROLES = ("denoiser", "gaussian", "gmm")
_ROWS = 2  # B of shape checks; above 1, so that a time [B] differs from a time [1]


class NetworkKind(NamedTuple):
    """A kind of network.

    settings: () -> its settings with their defaults.
    roles: role -> function that makes the module. By name, it gets those settings and
        arguments of `make_network` that its signature names.
    """

    settings: Callable[[], dict[str, Any]]
    roles: dict[str, Callable[..., nn.Module]]


def _mlp_settings() -> dict[str, Any]:
    return dict(
        hidden_sizes=(512, 512, 512),  # width of every hidden layer
        activation="relu",  # of the hidden layers: relu, mish, gelu, tanh ...
        layer_norm=False,  # after every hidden layer
        residual=True,  # pairs of layers with skip connections
        time_dim=16,  # only for a denoiser
        condition_sizes=placeholder(tuple),  # only for a denoiser
        compute_dtype="float32",  # or "bfloat16", for accelerators
    )


def _unet_settings() -> dict[str, Any]:
    return dict(
        dim=64,  # channels of the first level
        dim_mults=(1, 2),  # one level each; model.chunk is halved between levels
        kernel_size=5,  # of the convolutions
        num_groups=FieldReference(8, field_type=int),  # None: no group normalisation
        num_out_groups=placeholder(int),  # of the last block; None: as num_groups
        group_norm_eps=1e-5,  # added to the variance
        predict_scale=True,  # FiLM with a scale and a shift; False: a shift
        larger_encoder=True,  # of the observation: two layers; False: one
        activation="mish",  # of the hidden layers
        time_dim=16,  # of the embedding of the denoising step
        condition_sizes=placeholder(tuple),  # of layers that encode the observation
        compute_dtype="float32",  # or "bfloat16", for accelerators
    )


def _transformer_settings() -> dict[str, Any]:
    return dict(
        embed_dim=256,  # width
        num_heads=8,  # attention heads; divides embed_dim
        num_layers=6,  # transformer layers
        activation="gelu",  # of the hidden layers
        causal=False,  # an action of a chunk reads later ones too
        embedding_dropout=0.0,  # both while cloning only
        attention_dropout=0.0,  # while cloning only
        compute_dtype="float32",  # or "bfloat16", on accelerators
    )


NETWORKS: dict[str, NetworkKind] = {
    "mlp": NetworkKind(
        settings=_mlp_settings,
        roles={
            "denoiser": DiffusionMLP,
            "gaussian": GaussianMLP,
            "gmm": MixtureMLP,
        },
    ),
    "transformer": NetworkKind(
        settings=_transformer_settings,
        roles={"gaussian": GaussianTransformer, "gmm": MixtureTransformer},
    ),
    "unet": NetworkKind(settings=_unet_settings, roles={"denoiser": DiffusionUNet}),
}


def default_config(kind: str = "mlp") -> ConfigDict:
    """Settings of a network: `kind`, `options` and those of the kind in `NETWORKS`."""
    _check_kind(kind)
    config = ConfigDict()
    # A name in `NETWORKS`, or `module:function` or `path/to/file.py:function` of a
    # function outside the package. Such a function gets `options` and, by name, those
    # settings and arguments of `make_network` that its signature names.
    config.kind = kind
    config.options = ConfigDict()  # keyword arguments of a function outside the package
    config.encoder = build_encoder.default_config()
    if kind in NETWORKS:
        config.update(NETWORKS[kind].settings())
    return config


def make_network(
    config: ConfigDict,
    *,
    role: str,
    action_dim: int,
    chunk: int,
    head: Mapping[str, Any] | None = None,
    encoder: nn.Module | None = None,
) -> nn.Module:
    """Make the network that a configuration describes.

    Args:
        config: `default_config` with changes.
        role: "denoiser", "gaussian" or "gmm", see the module's docstring.
        action_dim: Da.
        chunk: Ta.
        head: settings of the output of a Gaussian or a mixture, such as its standard
            deviation; None for a denoiser.
        encoder: see `networks.encoders`; None: the one of `config.encoder`.

    Returns:
        A module that has not been initialised.

    Raises:
        SettingsError: invalid settings, which the message names.
    """
    if role not in ROLES:
        raise SettingsError(f"role={role!r} is unknown; use one of {', '.join(ROLES)}.")
    kind = config.kind
    _check_kind(kind)
    settings = {name: value for name, value in config.items()}
    options = dict(settings.pop("options", {}))
    described = settings.pop("encoder", None)
    del settings["kind"]
    if encoder is None:
        dtype = settings.get("compute_dtype", "float32")
        encoder = build_encoder.make_encoder(described, compute_dtype=dtype)
    offered = {
        **settings,
        **(head or {}),
        "role": role,
        "action_dim": action_dim,
        "chunk": chunk,
        "encoder": encoder,
    }
    if kind not in NETWORKS:
        make = load_object(kind, hint="model.network.kind names it.")
        network = call(f"network.kind={kind}", make, options=options, offered=offered)
        _check_role(kind, network, role)
        return network
    if options:
        raise SettingsError(
            f"network.options={options} are only for functions outside the package; "
            f"{kind!r} has the settings {sorted(NETWORKS[kind].settings())}."
        )
    unknown = sorted(settings.keys() - NETWORKS[kind].settings().keys())
    if unknown:
        raise SettingsError(
            f"network.kind={kind!r} has no settings {unknown}; start from "
            f"default_config({kind!r})."
        )
    if role not in NETWORKS[kind].roles:
        known = [name for name, other in NETWORKS.items() if role in other.roles]
        raise SettingsError(
            f"network.kind={kind!r} cannot be a {role}; use one of {', '.join(known)}."
        )
    return call(kind, NETWORKS[kind].roles[role], offered=offered)


def check_outputs(
    network: nn.Module,
    obs: Obs,
    *,
    role: str,
    action_dim: int,
    chunk: int,
    tells_length: bool = False,
) -> None:
    """Check a network's outputs against its role, without computing them.

    Without this check a wrong shape could broadcast into a wrong density, and integers
    would have no gradient.

    Args:
        obs: observations [B, ...], or their shapes.
        tells_length: a denoiser must accept times [B, 2] and [1, 2].

    Raises:
        SettingsError: an output has another shape than its role requires or does not
            hold floats, or a denoiser does not accept a time of shape [B] or [1].
    """
    key, shape = jax.random.key(0), (_ROWS, chunk, action_dim)
    obs = jax.tree.map(lambda x: _like((_ROWS, *x.shape[1:]), x.dtype), obs)
    if role == "gaussian":
        outputs, _ = jax.eval_shape(network.init_with_output, key, obs)
        _check_shapes(network, role, ("mean", "std"), outputs, shape)
        return
    if role == "gmm":
        outputs, _ = jax.eval_shape(network.init_with_output, key, obs)
        _check_mixture(network, outputs, shape)
        return
    apply: Callable[..., Any] = network.apply
    x = _like(shape)
    times = [_like((rows, 2) if tells_length else (rows,)) for rows in (_ROWS, 1)]
    params = jax.eval_shape(network.init, key, x, times[0], obs)
    condition = jax.eval_shape(functools.partial(apply, method="encode"), params, obs)
    denoise = functools.partial(apply, method="denoise")
    for time in times:
        try:
            output = jax.eval_shape(denoise, params, x, time, condition)
        except (TypeError, ValueError) as error:
            raise SettingsError(
                f"{type(network).__name__}.denoise fails for x of shape {shape} and a "
                f"time of shape {time.shape}; it must take one time per row, [B], and "
                f"one time for all rows, [1]: {error}"
            ) from error
        _check_shapes(network, role, ("output",), output, shape)


def _check_shapes(
    network: nn.Module,
    role: str,
    names: tuple[str, ...],
    outputs: Any,
    shape: tuple[int, ...],
) -> None:
    outputs = _arrays(network, outputs)
    found = [output.shape for output in outputs]
    if len(found) != len(names) or any(other != shape for other in found):
        raise SettingsError(
            f"{type(network).__name__} returns outputs of shapes {found}; a {role} "
            f"must return {' and '.join(names)} of shape [B, Ta, Da], here {shape}."
        )


def _check_mixture(network: nn.Module, outputs: Any, shape: tuple[int, ...]) -> None:
    outputs = _arrays(network, outputs)
    found = [output.shape for output in outputs]
    rows, *entries = shape
    # The logits tell the number of modes.
    num_modes = found[-1][-1] if len(found) == 3 and found[-1] else 0
    modes = (rows, num_modes, *entries)
    if found != [modes, modes, (rows, num_modes)]:
        raise SettingsError(
            f"{type(network).__name__} returns outputs of shapes {found}; a gmm "
            "must return means and stds of shape [B, M, Ta, Da] and logits of shape "
            f"[B, M], here ({rows}, M, {entries[0]}, {entries[1]}) and ({rows}, M)."
        )


def _arrays(network: nn.Module, outputs: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    for output in outputs:
        dtype = getattr(output, "dtype", type(output).__name__)
        if not (hasattr(output, "shape") and jnp.issubdtype(dtype, jnp.floating)):
            raise SettingsError(
                f"{type(network).__name__} returns an output of type {dtype}; outputs "
                "must be arrays of floats, such as float32."
            )
    return outputs


def _like(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _check_kind(kind: str) -> None:
    if kind not in NETWORKS and not is_reference(kind):
        raise SettingsError(
            f"network.kind={kind!r} is unknown; use one of {', '.join(NETWORKS)}, or "
            "a function of your own, module:function or path/to/file.py:function."
        )


def _check_role(kind: str, network: Any, role: str) -> None:
    if not isinstance(network, nn.Module):
        raise SettingsError(
            f"network.kind={kind} returned a {type(network).__name__}; it must return "
            "a flax.linen.Module."
        )
    missing = [
        name
        for name in ("encode", "denoise")
        if role == "denoiser" and not callable(getattr(network, name, None))
    ]
    if missing:
        raise SettingsError(
            f"network.kind={kind} returned a {type(network).__name__} without "
            f"{' and '.join(missing)}; a denoiser needs the methods encode(obs) -> "
            "condition and denoise(x, time, condition)."
        )
