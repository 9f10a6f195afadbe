"""Names of the layers of the published U-Net: PyTorch <-> ours.

PyTorch names are those of `Unet1D` in the DPPO code (github irom-princeton/dppo, v0.5
to v0.8). `down_modules.<level>` and `up_modules.<level>` hold two blocks and a layer
that changes the length, `mid_modules` two blocks, `final_conv` the last convolutions.

PyTorch stores a convolution as [out, in, size] and a transposed one as [in, out, size].
Ours are [size, in, out] and [size, out, in], so reversing the axes converts both.
"""

import re
from collections.abc import Collection, Sequence

# Rows are (PyTorch, ours); {i} and {j} are numbers. The table is read both ways.
_BLOCKS = (
    ("down_modules.{i}.{j}", "down_{i}_{j}"),
    ("mid_modules.{i}", "middle_{i}"),
    ("up_modules.{i}.{j}", "up_{i}_{j}"),
)
_LAYERS_OF_BLOCKS = (
    ("blocks.0.block.0", "block_1/conv"),
    ("blocks.0.block.2", "block_1/norm"),
    ("blocks.1.block.0", "block_2/conv"),
    ("blocks.1.block.2", "block_2/norm"),
    ("cond_encoder.0", "film/linear_1"),
    ("cond_encoder.2", "film/linear_2"),
    ("cond_encoder.4", "film/linear_3"),
    ("cond_encoder.1", "film/linear"),  # of a small encoder, whose only layer it is
    ("residual_conv", "shortcut"),
)
_LAYERS = (
    ("time_mlp.1", "time_embedding/linear_1"),
    ("time_mlp.3", "time_embedding/linear_2"),
    ("down_modules.{i}.2.conv", "downsample_{i}"),
    ("up_modules.{i}.2.conv", "upsample_{i}"),
    ("final_conv.0.block.0", "out_block/conv"),
    ("final_conv.0.block.2", "out_block/norm"),
    ("final_conv.1", "out"),
    *(
        (f"{block}.{layer}", f"{our_block}/{our_layer}")
        for block, our_block in _BLOCKS
        for layer, our_layer in _LAYERS_OF_BLOCKS
    ),
)
_CONVOLUTION = re.compile(r"(.*/)?(conv|shortcut)|out|(down|up)sample_\d+")


def is_unet(parameters: Collection[str]) -> bool:
    """Whether parameters, by the names of their modules, are those of a U-Net."""
    return "down_0_0" in parameters


def is_convolution(path: str) -> bool:
    """Whether the layer at a path of ours is a convolution."""
    return _CONVOLUTION.fullmatch(path) is not None


def path_from_reference(name: str) -> str | None:
    """The path of a layer with a PyTorch name; None: a U-Net has none of that name."""
    return rename(name, _LAYERS)


def path_to_reference(path: str) -> str | None:
    """The PyTorch name of the layer at a path; None: a U-Net has none there."""
    return rename(path, [(ours, torch) for torch, ours in _LAYERS])


def rename(name: str, rows: Sequence[tuple[str, str]]) -> str | None:
    """Translate a name by the first row whose pattern it fits; None: by none."""
    for source, target in rows:
        pattern = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(source))
        match = re.fullmatch(pattern, name)
        if match:
            return target.format(**match.groupdict())
    return None
