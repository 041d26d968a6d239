"""The whole of ReasonBrain at a size that a laptop trains: the default, and the shipped model.

Sizes are those of rb_jax/config/model.py; no two stages have the same width. The paper's ablation:
--config=reasonworld:VARIANT, a name of VARIANTS.
"""

import ml_collections

from rb_jax.config import Config, ConfigError, to_config_dict

# Name -> the switches that differ from the full model, in the order of the paper's table.
VARIANTS = {
    "baseline": {"frce.enabled": False, "cme.enabled": False},
    "frce": {"frce.id_controller": False, "cme.enabled": False},
    "id_controller": {"cme.enabled": False},
    "cme": {"frce.id_controller": False},
    "full": {},
}


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ConfigError(f"{variant!r} is not a variant; choose {', '.join(VARIANTS)}")
    config = to_config_dict(Config())
    config.model.mmdit.prediction = "data"
    config.data.count = 24_576
    config.train.steps = 1_900
    config.train.ema_decay = 0.998
    config.optimizer.warmup_steps = 200
    # What is cheap is computed again rather than written and read, which is faster on a CPU.
    for blocks in config.remat:
        config.remat[blocks] = "modulation,qkv,attention,proj,mlp,out"
    config.model.update_from_flattened_dict(VARIANTS[variant])
    return config
