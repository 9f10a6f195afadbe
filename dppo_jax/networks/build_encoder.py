"""From a configuration to an encoder, by its kind, and to a critic that reads by one.

| kind    | reads                                     | module         |
|---------|-------------------------------------------|----------------|
| `state` | `obs["state"]`                            | `StateEncoder` |
| `vit`   | `obs["rgb"]` and, beside it, `obs["state"]` | `ViTEncoder`   |
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from dppo_jax.errors import SettingsError
from dppo_jax.networks.critics import StateActionCritic, StateCritic
from dppo_jax.networks.encoders import StateEncoder
from dppo_jax.networks.vision import COLORS, ViTEncoder

KINDS = ("state", "vit")


def default_config() -> ConfigDict:
    """What a network reads of an observation; `vit` counts only for that kind."""
    config = ConfigDict()
    config.kind = "state"  # or "vit"
    # See `ViTEncoder`; these are the sizes of the paper's pixel policies.
    config.vit = ConfigDict(
        dict(
            image_size=(96, 96),  # height and width in pixels
            num_cameras=1,  # images that are stacked in the channels
            image_history=1,  # frames, at most env.history
            patch_layers=2,  # 1: plain patches; 2: overlapping ones are joined
            patch_size=8,  # sides in pixels
            patch_norm=False,  # between the two convolutions
            depth=1,  # transformer layers
            num_heads=4,  # attention heads; divides embed_dim
            embed_dim=128,  # numbers per patch
            pooling="spatial",  # or "flat"
            features=128,  # numbers per camera
        )
    )
    return config


def make_encoder(
    config: Mapping[str, Any] | ConfigDict | None, *, compute_dtype: str = "float32"
) -> nn.Module:
    """The encoder that a configuration describes.

    Args:
        config: `default_config` with changes; None: of states.
        compute_dtype: of its layers, as in the network that reads by it.

    Raises:
        SettingsError: an unknown kind, or settings that no encoder can be built from.
    """
    kind = _kind(config)
    if kind == "state" or config is None:
        return StateEncoder()
    settings = dict(config["vit"])
    settings["image_size"] = tuple(settings["image_size"])
    return ViTEncoder(**settings, compute_dtype=compute_dtype)


def image_shape(
    config: Mapping[str, Any] | ConfigDict | None,
) -> tuple[int, int, int, int] | None:
    """Shape (T, H, W, C) of the images that an encoder reads; None: it reads none."""
    if config is None or _kind(config) != "vit":
        return None
    vit = config["vit"]
    height, width = vit["image_size"]
    return vit["image_history"], height, width, COLORS * vit["num_cameras"]


def make_state_critic(config: ConfigDict) -> StateCritic:
    """V(s) with the settings of `config.critic`, its encoder among them."""
    return StateCritic(**_with_encoder(config))


def make_state_action_critic(
    config: ConfigDict, *, num_critics: int
) -> StateActionCritic:
    """Q(s, a) with the settings of `config.critic`, its encoder among them."""
    return StateActionCritic(**_with_encoder(config), num_critics=num_critics)


def _with_encoder(config: ConfigDict) -> dict[str, Any]:
    settings = dict(config)
    dtype = settings.get("compute_dtype", "float32")
    encoder = make_encoder(settings.pop("encoder", None), compute_dtype=dtype)
    return {**settings, "encoder": encoder}


def _kind(config: Mapping[str, Any] | ConfigDict | None) -> str:
    kind = "state" if config is None else config["kind"]
    if kind not in KINDS:
        raise SettingsError(
            f"encoder.kind={kind!r} is unknown; use one of {', '.join(KINDS)}."
        )
    return kind
