"""Lift, a manipulation task of robosuite; `lift.py:fast` is for two CPU cores.

`manipulation.py` has the settings.
"""

from ml_collections import ConfigDict

from experiments.configs.manipulation import VARIANTS, make_config

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "paper") -> ConfigDict:
    return make_config("lift", variant)
