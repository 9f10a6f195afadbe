"""Gymnasium's Hopper; its variants, `:v0_8` and others, are in `locomotion.py`."""

from ml_collections import ConfigDict

from experiments.configs.locomotion import VARIANTS, make_config

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "v0_8") -> ConfigDict:
    config = make_config("hopper", variant)
    # Demonstrations and results in the literature come from older versions of MuJoCo,
    # which took the larger margin of two geoms, not the sum.
    config.env.options = ConfigDict(dict(margins="max"))
    return config
