"""The small autoencoder of ReasonWorld: the codec that configs/reasonworld.py paints in."""

import ml_collections

from rb_jax.config import Config, to_config_dict


def get_config() -> ml_collections.ConfigDict:
    config = to_config_dict(Config())
    config.data.count = 100_000
    config.train.task = "autoencoder"
    config.train.frozen = ()
    config.train.autoencoder_from = ""
    config.train.steps = 2_500
    config.train.batch_size = 8  # examples; each gives two pictures
    config.optimizer.learning_rate = 2e-3
    return config
