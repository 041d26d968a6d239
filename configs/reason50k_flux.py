"""The paper's model at full size: LLaVA-7B, FRCE, QFormer, CME and FLUX.1-dev's 12B MMDiT.

The frozen encoders' features (CLIP, SAM, autoencoder) are computed ahead of time. Presets, as
--config=reason50k_flux:PRESET or PRESET,SIZE (512 or 1024 px):

    paper    the MMDiT trained in full, as in the paper
    lora     LoRA on every projection of the MMDiT's blocks
    adapter  the MMDiT frozen; only what makes its conditioning learns
"""

import ml_collections

from rb_jax.config import Config, ConfigError, paper_model, to_config_dict

# What the presets change; all train LLaVA's LoRA and every new module.
PRESETS = {
    "paper": {"train.trainable": ("mllm/**/lora_*", "mmdit/**")},
    "lora": {
        "train.trainable": ("mllm/**/lora_*", "mmdit/**/lora_*"),
        "model.mmdit.lora_rank": 64,
        "model.mmdit.lora_alpha": 64.0,
    },
    "adapter": {"train.trainable": ("mllm/**/lora_*",)},
}
# The modules that the paper adds to LLaVA and FLUX.
NEW = (
    "frce/**",
    "qformer/**",
    "cme/**",
    "projections/**",
    "mllm/image_tokens/**",
    "mllm/visual_cue_proj/**",
    "mllm/textual_cue_proj/**",
)
SIZES = (512, 1024)


def get_config(variant: str = "paper,512") -> ml_collections.ConfigDict:
    preset, _, size = variant.partition(",")
    if preset not in PRESETS or size not in ("", *map(str, SIZES)):
        raise ConfigError(
            f"{variant!r} is not a preset; choose {', '.join(PRESETS)}, or with a size of "
            f"{' or '.join(map(str, SIZES))} such as lora,1024"
        )
    config = to_config_dict(Config())
    config.model.update_from_flattened_dict(paper_model())
    config.data.update(name="synthetic", inputs="features", image_size=int(size or 512))
    config.optimizer.update(learning_rate=1e-3, schedule="constant", warmup_steps=500)
    config.train.update(
        steps=40_000,
        batch_size=16,
        ema_decay=0.0,
        frozen=(),
        autoencoder_from="",
        eval_examples=0,
        log_every=10,
        eval_every=1_000,
        checkpoint_every=500,
    )
    config.mesh.update(data=-1, fsdp=-1)
    config.remat.update(
        double_blocks="modulation,qkv,attention,proj,mlp,out",
        single_blocks="modulation,qkv,attention,mlp,out",
        mllm="qkv,attention,proj,mlp",
        others="off",
    )
    changes = dict(PRESETS[preset])
    changes["train.trainable"] += NEW
    config.update_from_flattened_dict(changes)
    return config
