"""Train on from an assembled or trained model: --config=configs/from_checkpoint.py:DIR.

The model's sizes and everything else are those stored in DIR, and its weights are the start.
"""

from pathlib import Path

import ml_collections

from rb_jax.config import to_config_dict
from rb_jax.train.weights import stored_config


def get_config(folder: str) -> ml_collections.ConfigDict:
    config = to_config_dict(stored_config(Path(folder)))
    config.train.init_from = folder
    return config
