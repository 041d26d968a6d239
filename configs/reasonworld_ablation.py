"""The paper's ablation on ReasonWorld: --config=configs/reasonworld_ablation.py:VARIANT.

Every variant trains equally short; only the switches of VARIANTS differ.
"""

import ml_collections

from rb_jax.config import Config, to_config_dict

# Name -> the switches that differ from the full model, in the order of the paper's table.
VARIANTS = {
    "baseline": {"frce.enabled": False, "cme.enabled": False},
    "frce": {"frce.id_controller": False, "cme.enabled": False},
    "id_controller": {"cme.enabled": False},
    "cme": {"frce.id_controller": False},
    "full": {},
}


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    config = to_config_dict(Config())
    config.model.mmdit.prediction = "data"
    config.data.count = 8_192
    config.train.steps = 1_000
    config.train.ema_decay = 0.995
    config.train.eval_every = 1_000
    config.train.checkpoint_every = 1_000
    config.model.update_from_flattened_dict(VARIANTS[variant])
    return config
