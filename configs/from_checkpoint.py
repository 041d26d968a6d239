"""Train on from an assembled or trained model: --config=from_checkpoint:FOLDER.

The model's sizes and everything else are those stored in FOLDER (a weights folder, a workdir, or
``shipped``), and its weights are the start.
"""

import ml_collections

from rb_jax.checkpoint.stored import stored_config
from rb_jax.config import to_config_dict


def get_config(folder: str) -> ml_collections.ConfigDict:
    config = to_config_dict(stored_config(folder))
    config.train.init_from = folder
    return config
