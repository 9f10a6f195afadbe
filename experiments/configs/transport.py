"""Transport, a task of robosuite for two arms; `transport.py:fast` is for two cores.

`manipulation.py` has the settings.
"""

from ml_collections import ConfigDict

from experiments.configs.manipulation import VARIANTS, make_config

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "paper") -> ConfigDict:
    return make_config("transport", variant)
