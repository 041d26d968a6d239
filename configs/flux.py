"""FLUX.1-dev's transformer alone, text to image: the workload that other trainers publish.

1024 px, 512 conditioning tokens, global batch 8, fully sharded. Presets, as
--config=flux:PRESET:

    fast   float32 weights and moments, nearly nothing recomputed: for chips with much memory
    small  bfloat16 weights and moments, blocks recomputed from their inputs
"""

import ml_collections

from rb_jax.config import Config, ConfigError, paper_model, to_config_dict

PRESETS = {
    "fast": {
        "remat.double_blocks": "modulation,qkv,attention,proj,mlp,out",
        "remat.single_blocks": "modulation,qkv,attention,mlp,out",
    },
    "small": {
        "train.param_dtype": "bfloat16",
        "optimizer.moment_dtype": "bfloat16",
        "remat.double_blocks": "full",
        "remat.single_blocks": "full",
    },
}


def get_config(preset: str = "fast") -> ml_collections.ConfigDict:
    if preset not in PRESETS:
        raise ConfigError(f"{preset!r} is not a preset; choose {' or '.join(PRESETS)}")
    config = to_config_dict(Config())
    config.model.update_from_flattened_dict(paper_model())
    config.model.mmdit.source = "none"
    config.model.cme.queries = 256  # 2 x 256 conditioning tokens, as many as T5's
    config.data.update(name="synthetic", inputs="features", image_size=1024)
    config.optimizer.update(learning_rate=1e-5, schedule="constant", warmup_steps=100)
    config.train.update(
        task="mmdit",
        steps=10_000,
        batch_size=8,
        ema_decay=0.0,
        frozen=(),
        autoencoder_from="",
        eval_examples=0,
        log_every=10,
        eval_every=1_000,
        checkpoint_every=500,
    )
    config.mesh.update(data=-1, fsdp=-1)
    config.update_from_flattened_dict(PRESETS[preset])
    return config
