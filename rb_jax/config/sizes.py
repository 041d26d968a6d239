"""What the paper fixes: its kinds of reasoning, and the sizes of the published models."""

from __future__ import annotations

from typing import Any

CATEGORIES = ("physical", "temporal", "causal", "story")
# The paper's (arXiv 2507.01908) and its authors' code's; those of the pretrained parts are
# CLIP ViT-L/14's, LLaVA-7B-v1.1's, SAM ViT-H's and FLUX.1-dev's.
PAPER: dict[str, dict[str, Any]] = {
    "vision": dict(
        image_size=224,
        patch_size=14,
        width=1024,
        layers=24,
        heads=16,
        mlp_width=4096,
        feature_layer=-2,
    ),
    "text": dict(vocab_size=49_408, max_length=77, width=768, layers=12, heads=12, mlp_width=3072),
    "regions": dict(encoder="sam", width=256, max_regions=64),
    "autoencoder": dict(
        channels=128,
        channel_mult=(1, 2, 4, 4),
        num_res_blocks=2,
        latent_channels=16,
        norm_groups=32,
        scale_factor=0.3611,
        shift_factor=0.1159,
    ),
    "frce": dict(
        width=1024,
        heads=8,
        patch_layers=4,
        region_layers=2,
        id_controller_layers=2,
        max_objects=16,
    ),
    "mllm": dict(
        vocab_size=32_000,
        max_length=80,
        width=4096,
        mlp_width=11_008,
        layers=32,
        heads=32,
        kv_heads=32,
        norm_eps=1e-5,
        projector="linear",
        image_tokens=32,
        lora_rank=8,
        lora_alpha=16.0,
    ),
    "qformer": dict(width=768, heads=12, layers=6, queries=77),
    "cme": dict(width=1024, heads=16, blocks=5, queries=77),
    "mmdit": dict(
        width=3072,
        heads=24,
        mlp_ratio=4.0,
        double_blocks=19,
        single_blocks=38,
        context_width=4096,
        axes_dim=(16, 56, 56),
    ),
}


def paper_model() -> dict[str, Any]:
    """Dotted keys under ``model`` and their values, in bfloat16."""
    sizes = {f"{group}.{key}": v for group, keys in PAPER.items() for key, v in keys.items()}
    return {"dtype": "bfloat16"} | sizes
