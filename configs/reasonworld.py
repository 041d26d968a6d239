"""The whole of ReasonBrain at a size that a laptop trains: the default."""

import ml_collections

from rb_jax.config import Config, to_config_dict


def get_config() -> ml_collections.ConfigDict:
    return to_config_dict(Config())
