"""Gymnasium's Hopper from medium demonstrations: `:v0_8`, `:v0_6`, `:cpu`, `:fast`.

`experiments.collect` makes demonstrations, --config.data=PATH brings others;
`experiments/configs/locomotion.py` says what the variants are.
"""

from ml_collections import ConfigDict

from experiments.configs.locomotion import make_config


def get_config(variant: str = "v0_8") -> ConfigDict:
    config = make_config("hopper", variant)
    # Demonstrations and results in the literature are from a MuJoCo that did not add
    # the margins of two geoms.
    config.env.options = ConfigDict(dict(margins="max"))
    return config
