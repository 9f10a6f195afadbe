"""Names of the layers of LeRobot's U-Net -> ours.

PyTorch names are those of `DiffusionConditionalUnet1d` in LeRobot (github
huggingface/lerobot, lerobot/policies/diffusion/modeling_diffusion.py).
`down_modules.<level>` and `up_modules.<level>` hold two blocks and a convolution that
changes the length, `mid_modules` two blocks, `final_conv` the last convolutions. The
network is a `DiffusionUNet` with a small encoder in every FiLM, and with a last block
that always has eight groups.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from dppo_jax.errors import SettingsError
from dppo_jax.interop.reference_unet import is_convolution, rename
from dppo_jax.types import PyTree

NUM_OUT_GROUPS = 8

# Rows are (PyTorch, ours); {i} and {j} are numbers.
_BLOCKS = (
    ("down_modules.{i}.{j}", "down_{i}_{j}"),
    ("mid_modules.{i}", "middle_{i}"),
    ("up_modules.{i}.{j}", "up_{i}_{j}"),
)
_LAYERS_OF_BLOCKS = (
    ("conv1.block.0", "block_1/conv"),
    ("conv1.block.1", "block_1/norm"),
    ("conv2.block.0", "block_2/conv"),
    ("conv2.block.1", "block_2/norm"),
    ("cond_encoder.1", "film/linear"),
    ("residual_conv", "shortcut"),
)
_LAYERS = (
    ("diffusion_step_encoder.1", "time_embedding/linear_1"),
    ("diffusion_step_encoder.3", "time_embedding/linear_2"),
    ("down_modules.{i}.2", "downsample_{i}"),
    ("up_modules.{i}.2", "upsample_{i}"),
    ("final_conv.0.block.0", "out_block/conv"),
    ("final_conv.0.block.1", "out_block/norm"),
    ("final_conv.1", "out"),
    *(
        (f"{block}.{layer}", f"{our_block}/{our_layer}")
        for block, our_block in _BLOCKS
        for layer, our_layer in _LAYERS_OF_BLOCKS
    ),
)


def params_from_lerobot(state_dict: Mapping[str, np.ndarray]) -> PyTree:
    """Convert the weights of a U-Net to our parameters, as `init` returns them.

    Args:
        state_dict: one array per name, without the prefix `diffusion.unet.`. Reversing
            the axes converts convolutions, see `reference_unet`, and linear layers.

    Raises:
        SettingsError: unknown names (the message lists them), or a weight of the wrong
            rank.
    """
    params: PyTree = {}
    unknown = []
    for name, array in state_dict.items():
        module, _, leaf = name.rpartition(".")
        path = rename(module, _LAYERS)
        if path is None or leaf not in ("weight", "bias"):
            unknown.append(name)
            continue
        is_norm = path.endswith("norm")
        rank = 1
        if leaf == "weight" and not is_norm:
            rank = 3 if is_convolution(path) else 2
        if array.ndim != rank:
            raise SettingsError(
                f"{name} has shape {array.shape}, but such a weight has {rank} axes."
            )
        node = params
        for parent in path.split("/"):
            node = node.setdefault(parent, {})
        leaf = {"bias": "bias", "weight": "scale" if is_norm else "kernel"}[leaf]
        node[leaf] = jnp.asarray(array.T, jnp.float32)
    if unknown:
        raise SettingsError(
            f"LeRobot's U-Net has no weights named {', '.join(sorted(unknown))}."
        )
    return {"params": params}
