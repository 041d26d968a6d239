"""The whole of ReasonBrain at a size that a laptop trains: the default, and the shipped model.

Sizes are those of rb_jax/config.py; no two stages have the same width.
"""

import ml_collections

from rb_jax.config import Config, to_config_dict


def get_config() -> ml_collections.ConfigDict:
    config = to_config_dict(Config())
    config.model.mmdit.prediction = "data"
    config.data.count = 24_576
    config.train.steps = 1_900
    config.train.ema_decay = 0.998
    config.optimizer.warmup_steps = 200
    return config
