"""Weights of image encoders under PyTorch names <-> ours.

The names are those of the published DPPO models (github irom-princeton/dppo): the
transformer is `backbone.vit`, and the embedding of its output `compress`, or, of two
cameras, `compress1` and `compress2`. Torch stores the weight of a convolution as
[out, in, height, width], Flax as [height, width, in, out], and what is added to or
multiplied with every row has a leading axis of one there.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dppo_jax.errors import SettingsError
from dppo_jax.networks.vision import COLORS

PREFIX = "encoder/"

_VIT = "backbone.vit"
# Our module -> that of torch, by the number of layers of the patch embedding.
_PATCHES = {
    1: {"conv_1": "conv"},
    2: {"conv_1": "embed.0", "norm_1": "embed.1", "conv_2": "embed.3"},
}
_LAYER = {
    "norm_1": "layer_norm1",
    "qkv": "mha.qkv_proj",
    "output": "mha.out_proj",
    "norm_2": "layer_norm2",
    "linear_1": "linear1",
    "linear_2": "linear2",
}
_EMBEDDING = {
    "spatial": {"linear": "input_proj.0", "norm": "input_proj.1"},
    "flat": {"linear": "0", "norm": "1"},
}


class _Layout(NamedTuple):
    """What the names of an encoder's weights depend on."""

    patch_layers: int
    depth: int
    num_cameras: int
    pooling: str

    def modules(self) -> dict[str, str]:
        """Our module -> that of torch."""
        found = {"vit/norm": f"{_VIT}.norm"}
        for ours, torch in _PATCHES[self.patch_layers].items():
            found[f"vit/patches/{ours}"] = f"{_VIT}.patch_embed.{torch}"
        for i in range(self.depth):
            for ours, torch in _LAYER.items():
                found[f"vit/layer_{i}/{ours}"] = f"{_VIT}.net.{i}.{torch}"
        for ours, torch in _EMBEDDING[self.pooling].items():
            for camera, compress in self.cameras().items():
                found[f"{camera}/{ours}"] = f"{compress}.{torch}"
        return found

    def arrays(self) -> dict[str, str]:
        """Our parameter that is alone -> that of torch, with one axis more."""
        found = {"vit/position": f"{_VIT}.pos_embed"}
        if self.pooling == "spatial":
            for camera, compress in self.cameras().items():
                found[f"{camera}/weight"] = f"{compress}.weight"
        return found

    def cameras(self) -> dict[str, str]:
        if self.num_cameras == 1:
            return {"camera_0": "compress"}
        return {f"camera_{i}": f"compress{i + 1}" for i in range(self.num_cameras)}


def encoder_from_reference(
    state_dict: Mapping[str, np.ndarray],
) -> dict[str, tuple[str, np.ndarray]]:
    """Weights of an image encoder among those of a network.

    Args:
        state_dict: one array per torch name.

    Returns:
        Our path and array for every torch name that an encoder has; none for networks
        without one.

    Raises:
        SettingsError: a weight of the wrong rank.
    """
    layout = _Layout(
        patch_layers=2 if f"{_VIT}.patch_embed.embed.0.weight" in state_dict else 1,
        depth=_count(state_dict, f"{_VIT}.net.", "."),
        num_cameras=max(_count(state_dict, "compress", "."), 1),
        pooling="spatial" if any("input_proj" in x for x in state_dict) else "flat",
    )
    found: dict[str, tuple[str, np.ndarray]] = {}
    for ours, torch in layout.arrays().items():
        if torch in state_dict:
            array = state_dict[torch]
            if array.ndim != 3 or array.shape[0] != 1:
                raise SettingsError(
                    f"{torch} has shape {array.shape}; it should be [1, ., .]."
                )
            found[torch] = PREFIX + ours, array[0]
    for ours, torch in layout.modules().items():
        for leaf in ("weight", "bias"):
            name = f"{torch}.{leaf}"
            if name in state_dict:
                leaf, array = _leaf_from_reference(ours, name, state_dict[name])
                found[name] = f"{PREFIX}{ours}/{leaf}", array
    return found


def encoder_to_reference(encoder: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The way back, from arrays by their paths, which start with `PREFIX`.

    Raises:
        SettingsError: parameters without a torch name (they are listed).
    """
    paths = {path.removeprefix(PREFIX): array for path, array in encoder.items()}
    layout = _Layout(
        patch_layers=2 if "vit/patches/conv_2/kernel" in paths else 1,
        depth=_count(paths, "vit/layer_", "/"),
        num_cameras=_count(paths, "camera_", "/"),
        pooling="spatial" if "camera_0/weight" in paths else "flat",
    )
    arrays, modules = layout.arrays(), layout.modules()
    weights, unknown = {}, []
    for path, array in paths.items():
        module, _, leaf = path.rpartition("/")
        # The published networks have one or two cameras.
        unnamed = path.startswith("camera_") and layout.num_cameras > 2
        if path in arrays and not unnamed:
            weights[arrays[path]] = array[None]
        elif module in modules and not unnamed:
            name = f"{modules[module]}.{'bias' if leaf == 'bias' else 'weight'}"
            if leaf == "kernel":
                array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
            weights[name] = array
        else:
            unknown.append(PREFIX + path)
    if unknown:
        raise SettingsError(f"No torch name for the parameters {', '.join(unknown)}.")
    return weights


def infer_encoder(encoder: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """What the weights tell of an encoder's settings, under their names.

    Args:
        encoder: parameters of a `ViTEncoder`.

    Returns:
        Settings, without the number of heads and the size of an image, which the
        weights do not tell; and how many features of images there are.
    """
    vit, camera = encoder["vit"], encoder["camera_0"]
    kernel = vit["patches"]["conv_1"]["kernel"]
    features = len(camera["linear"]["bias"])
    num_cameras = _count(encoder, "camera_", "/")
    settings = {
        "image_history": kernel.shape[2] // COLORS,
        "num_cameras": num_cameras,
        "patch_layers": 2 if "conv_2" in vit["patches"] else 1,
        "patch_size": kernel.shape[0],
        "patch_norm": "norm_1" in vit["patches"],
        "depth": _count(vit, "layer_", "/"),
        "embed_dim": kernel.shape[3],
        "pooling": "spatial" if "weight" in camera else "flat",
        "features": features,
    }
    told = {f"vit.{name}": value for name, value in settings.items()}
    return {"kind": "vit"} | told, num_cameras * features


def _leaf_from_reference(
    module: str, name: str, array: np.ndarray
) -> tuple[str, np.ndarray]:
    """Our name and array of a weight or bias."""
    if name.endswith(".bias"):
        return "bias", array
    kind = module.rpartition("/")[2].partition("_")[0]
    rank = {"conv": 4, "norm": 1}.get(kind, 2)
    if array.ndim != rank:
        raise SettingsError(
            f"{name} has shape {array.shape}; it should have {rank} axes."
        )
    if kind == "norm":
        return "scale", array
    return "kernel", array.transpose(2, 3, 1, 0) if rank == 4 else array.T


def _count(names: Iterable[str], prefix: str, end: str) -> int:
    """How many different words follow a prefix, up to the next `end`."""
    following = (x.removeprefix(prefix) for x in names if x.startswith(prefix))
    return len({x.partition(end)[0] for x in following})
