"""A whole model small enough to train in a test, which every layout can express."""

from __future__ import annotations

from pathlib import Path

from rb_jax.config import Config
from rb_jax.port.exporting import export_checkpoint
from rb_jax.port.importing import import_checkpoint
from rb_jax.weights.folder import save_weights
from tests import tiny

# FLUX's MLP is four times as wide; BFL's autoencoder file fixes groups, scale and shift.
CONFIG = tiny.config(
    model__vision__layers=2,
    model__text__layers=1,
    model__autoencoder__channels=32,
    model__autoencoder__channel_mult=(1, 1),
    model__autoencoder__norm_groups=32,
    model__autoencoder__scale_factor=0.3611,
    model__autoencoder__shift_factor=0.1159,
    model__frce__patch_layers=1,
    model__frce__id_controller_layers=1,
    model__mllm__layers=1,
    model__mllm__projector="mlp",
    model__qformer__layers=1,
    model__cme__blocks=1,
    model__mmdit__mlp_ratio=4.0,
    model__mmdit__double_blocks=1,
    model__mmdit__single_blocks=1,
    train__trainable=("mmdit/final_layer/linear/**",),
    train__steps=2,
    train__batch_size=2,
    train__eval_examples=0,
    optimizer__warmup_steps=0,
)
# What the authors' file does not tell.
HEADS = [
    f"{group}.heads={getattr(CONFIG.model, group).heads}" for group in ("frce", "qformer", "cme")
]
# Where each part of an export is, and the family that it is found to be.
PARTS = {
    "flux": ("diffusers", "transformer"),
    "flux_vae": ("diffusers", "vae"),
    "clip": ("hf", "text_encoder"),
    "llava": ("hf", "mllm"),
    "reasonbrain": ("official", ""),
}


def save(folder: Path, config: Config = CONFIG) -> Path:
    save_weights(folder, config, tiny.params(config))
    return folder


def import_parts(checkpoint: Path, folder: Path) -> dict[str, Path]:
    """Exports a whole model in the layouts of PARTS and imports each part: family -> folder."""
    for layout in sorted({layout for layout, _ in PARTS.values()}):
        export_checkpoint(checkpoint, layout, folder / layout)
    for family, (layout, inner) in PARTS.items():
        settings = HEADS if family == "reasonbrain" else []
        found, _, _ = import_checkpoint(
            folder / layout / inner, folder / "parts" / family, settings=settings
        )
        assert found.name == family
    return {family: folder / "parts" / family for family in PARTS}
