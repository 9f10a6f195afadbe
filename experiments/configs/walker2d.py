"""Gymnasium's Walker2d; its variants, `:v0_8` and others, are in `locomotion.py`."""

from ml_collections import ConfigDict

from experiments.configs.locomotion import VARIANTS, make_config

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "v0_8") -> ConfigDict:
    return make_config("walker2d", variant)
