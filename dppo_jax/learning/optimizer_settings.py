"""Settings of an optimizer."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def default_config(learning_rate: float) -> ConfigDict:
    """Settings of `optimizers.trainer`, with a constant learning rate."""
    config = ConfigDict()
    config.learning_rate = learning_rate  # of Adam, constant
    config.weight_decay = 0.0  # of AdamW, times the learning rate
    config.max_grad_norm = placeholder(float)  # None: no limit
    return config
