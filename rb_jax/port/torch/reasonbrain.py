"""ReasonBrain (arXiv 2507.01908) in PyTorch: our wiring over stock modules.

FLUX and its autoencoder are diffusers', CLIP and LLaVA transformers', the LoRA PEFT's; only FRCE,
QFormer, CME and the projections between them are our own. Stages and records have the names they
have in JAX, so that the two sides can be compared stage by stage. Nothing here imports JAX.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,  # pyright: ignore[reportPrivateImportUsage]
    FluxTransformer2DModel,  # pyright: ignore[reportPrivateImportUsage]
)
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, LlavaForConditionalGeneration, SamModel

from rb_jax.config import Config, ModelConfig
from rb_jax.data.formats.schema import EditExample
from rb_jax.data.inputs.images import Picture, as_pixels, to_source_size, to_square
from rb_jax.data.pipeline.collate import ArrayCollator
from rb_jax.errors import InputError
from rb_jax.port.torch import encoders, folder, mllm, sampling
from rb_jax.port.torch.modules import CME, FRCE, QFormer
from rb_jax.port.torch.records import Batch, Conditioning, Cues, Features, batch_of

MAX_STEPS = 1000


def match_width(in_width: int, out_width: int) -> nn.Module:
    """A linear layer when the widths differ; without tensors when they agree."""
    return nn.Identity() if in_width == out_width else nn.Linear(in_width, out_width)


class OwnModules(nn.Module):
    """What is in reasonbrain/model.safetensors: everything that is not a stock module."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        frce, width, out = model.frce, model.cme.width, model.mmdit.context_width
        if model.regions.encoder == "stem":
            self.regions = encoders.RegionStem(model.regions)
        if frce.enabled:
            self.frce = FRCE(model)
            self.visual_cue_proj = nn.Linear(frce.width, model.mllm.width)
            self.textual_cue_proj = nn.Linear(frce.width, model.mllm.width)
        self.qformer = QFormer(model.mllm.width, model.qformer)
        if not model.cme.enabled:
            self.cond_proj = nn.Linear(model.qformer.width, out, bias=False)
            return
        self.cme = CME(model.cme)
        in_widths = {
            "v_hat": model.qformer.width,
            "image": model.vision.width,
            "text": model.text.width,
            "visual_cues": frce.width,
            "textual_cues": frce.width,
        }
        self.projections = nn.ModuleDict({k: match_width(w, width) for k, w in in_widths.items()})
        self.cme_proj = nn.Linear(width, out, bias=False)


class ReasonBrainTorch(nn.Module):
    """A model with its weights: ``edit`` for pictures, the stages for batches of tensors.

    ``mllm`` is a PeftModel when there is a LoRA, else the bare LLaVA; ``llava`` is always the
    latter (with the LoRA's layers in it).
    """

    def __init__(
        self,
        config: Config,
        own: OwnModules,
        transformer: FluxTransformer2DModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        mllm: nn.Module,
        sam: nn.Module | None = None,
    ):
        super().__init__()
        self.config = config
        self.own, self.mllm, self.sam = own, mllm, sam
        self.transformer, self.vae, self.text_encoder = transformer, vae, text_encoder
        self.collate = ArrayCollator(config)
        rows, words = len(self.llava.get_input_embeddings().weight), config.model.mllm
        if rows != words.vocab_size + words.image_tokens:
            raise InputError(
                f"the language model has {rows} words, expected "
                f"{words.vocab_size} and {words.image_tokens} [IMG]"
            )

    @classmethod
    def from_pretrained(
        cls,
        export_dir: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> ReasonBrainTorch:
        """The model in an exported folder (rb_jax/port/torch/folder.py says what is in it).

        In bfloat16 diffusers also rounds the time t, to about three digits. Raises InputError for
        a folder with missing, damaged or mismatched parts.
        """
        path = Path(export_dir)
        config = folder.read_config(path)
        own, own_regions = OwnModules(config.model), config.model.regions.encoder == "stem"
        folder.load_own(own, path / "reasonbrain" / "model.safetensors")
        # With this setting transformers lists the misshapen tensors, and load_stock raises.
        options: dict[str, Any] = {"dtype": dtype, "ignore_mismatched_sizes": True}
        llava = folder.load_stock(LlavaForConditionalGeneration, path / "mllm", **options)
        if config.model.mllm.lora_rank:
            llava = folder.load_adapter(llava, path / folder.ADAPTER)
        model = cls(
            config,
            own,
            folder.load_stock(FluxTransformer2DModel, path / "transformer", torch_dtype=dtype),
            folder.load_stock(AutoencoderKL, path / "vae", torch_dtype=dtype),
            folder.load_stock(CLIPTextModel, path / "text_encoder", **options),
            llava,
            None if own_regions else folder.load_stock(SamModel, path / "sam", **options),
        )
        # Not model.to(dtype): transformers keeps LLaMA's frequencies in float32.
        model.own.to(dtype)
        return model.to(device).eval()

    @property
    def device(self) -> torch.device:
        return self.own.qformer.queries.device

    @property
    def llava(self) -> Any:
        return getattr(self.mllm, "get_base_model", lambda: self.mllm)()

    # The stages ---------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Features:
        """Everything the encoders say of a batch; nothing later looks at its pixels."""
        model = self.config.model
        tower = self.llava.model.vision_tower
        image, patches = encoders.encode_image(tower, batch.source, model.vision)
        text, pooled = encoders.encode_text(self.text_encoder, batch.text)
        latent = batch.source_latent
        if latent is None:
            latent = encoders.encode_latents(self.vae, batch.source, model.autoencoder)
        return Features(
            image=image,
            patches=patches,
            regions=self.region_features(batch),
            region_mask=batch.region_mask,
            text=text,
            text_mask=batch.text.mask,
            pooled=pooled,
            objects=encoders.encode_objects(self.text_encoder, batch.objects, batch.object_mask),
            object_mask=batch.object_mask,
            prompt=batch.prompt,
            source_latent=latent.float(),
        )

    def region_features(self, batch: Batch) -> torch.Tensor:
        """[B R C_r]: a map of the picture, averaged over each region."""
        if self.sam is None:
            return self.own.regions(batch.source, batch.regions)
        return encoders.masked_pool(encoders.encode_sam(self.sam, batch.source), batch.regions)

    def frce(self, features: Features) -> Cues:
        """R_V and R_T (PAPER section 4.2); no tokens in a model without FRCE."""
        if self.config.model.frce.enabled:
            return self.own.frce(features)
        empty = features.image.new_zeros(len(features.image), 0, self.config.model.frce.width)
        mask = torch.zeros_like(empty[..., 0], dtype=torch.bool)
        return Cues(empty, mask, empty, mask)

    def visual_guidance(self, features: Features, cues: Cues) -> tuple[torch.Tensor, torch.Tensor]:
        """V [B I C], the language model's states at the [IMG] tokens, and L_MLLM [B]."""
        config, own = self.config.model, self.own
        if config.frce.enabled:
            visual, textual = own.visual_cue_proj(cues.visual), own.textual_cue_proj(cues.textual)
        else:
            visual = textual = cues.visual.new_zeros(len(cues.visual), 0, config.mllm.width)
        cues = Cues(visual, cues.visual_mask, textual, cues.textual_mask)
        return mllm.visual_guidance(
            self.llava, config.mllm, features.patches, features.prompt, cues
        )

    def qformer(self, v: torch.Tensor) -> torch.Tensor:
        """V_hat [B Q C]."""
        return self.own.qformer(v)

    def enhance(
        self, v_hat: torch.Tensor, features: Features, cues: Cues
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """R_bar_V and R_bar_T, each [B Q2 C], of a model with the CME (PAPER section 4.3)."""
        cme, project = self.own.cme, self.own.projections
        v_hat = project["v_hat"](v_hat)
        image_mask = torch.ones_like(features.image[..., 0], dtype=torch.bool)
        visual = cme.visual_enhancer(
            v_hat,
            project["image"](features.image),
            image_mask,
            project["visual_cues"](cues.visual),
            cues.visual_mask,
        )
        textual = cme.text_enhancer(
            v_hat,
            project["text"](features.text),
            features.text_mask,
            project["textual_cues"](cues.textual),
            cues.textual_mask,
        )
        return visual, textual

    def condition(self, features: Features) -> tuple[Conditioning, torch.Tensor]:
        """The flow model's conditioning, and L_MLLM of each example (PAPER sections 4.1 to 4.3)."""
        cues = self.frce(features)
        v, mllm_loss = self.visual_guidance(features, cues)
        v_hat = self.qformer(v)
        if self.config.model.cme.enabled:
            tokens = self.own.cme_proj(torch.cat(self.enhance(v_hat, features, cues), dim=1))
        else:
            tokens = self.own.cond_proj(v_hat)
        return Conditioning(tokens, features.pooled, features.source_latent), mllm_loss

    def velocity(
        self,
        z_t: torch.Tensor,
        t: torch.Tensor,
        guidance: torch.Tensor,
        conditioning: Conditioning,
    ) -> torch.Tensor:
        """eps - x0 at z_t [B H W C], t and guidance [B]; whichever of the two FLUX predicts."""
        config, dtype = self.config.model.mmdit, self.transformer.dtype
        (_, height, width, channels), patch = z_t.shape, config.patch_size
        tokens = sampling.pack(z_t, patch)
        source = sampling.pack(conditioning.source_latent.to(z_t.dtype), patch)
        ids, count = sampling.position_ids(height, width, patch), tokens.shape[1]
        if config.source == "channel":
            tokens = torch.cat([tokens, source], dim=-1)
        else:
            tokens = torch.cat([tokens, source], dim=1)
            ids = torch.cat([ids, sampling.position_ids(height, width, patch, image=1)])
        # An input layer wider than z_t and the source is fed zeros.
        tokens = F.pad(tokens, (0, config.token_width(channels) - tokens.shape[-1]))
        out = self.transformer(
            hidden_states=tokens.to(dtype),
            encoder_hidden_states=conditioning.tokens.to(dtype),
            pooled_projections=conditioning.vector.to(dtype),
            timestep=t,
            guidance=guidance if config.guidance_embed else None,
            img_ids=ids.to(z_t.device),
            txt_ids=ids.new_zeros(conditioning.tokens.shape[1], 3).to(z_t.device),
        ).sample
        out = sampling.unpack(out[:, :count].float(), height, width, patch)
        return out if config.prediction == "velocity" else sampling.velocity_of_data(out, z_t, t)

    # From noise to a picture --------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        batch: Batch,
        noise: torch.Tensor | np.ndarray | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        true_cfg: float | None = None,
    ) -> torch.Tensor:
        """Edited pictures [B S S 3] around [-1, 1]; None takes the configuration's value.

        ``noise`` [B H W C] takes the place of the seed's. ``guidance`` is the distilled scale FLUX
        is told; ``true_cfg`` mixes in a second, unconditional velocity (1 switches it off).
        Raises InputError for settings out of range and noise of another shape.
        """
        flow = self.config.flow
        steps = flow.steps if steps is None else steps
        guidance = flow.guidance if guidance is None else guidance
        scale = flow.true_cfg if true_cfg is None else true_cfg
        _check_settings(steps, seed, guidance, scale)
        features = self.encode(batch)
        shape = features.source_latent.shape
        start = sampling.draw_noise(shape, seed) if noise is None else noise
        if tuple(start.shape) != tuple(shape):
            raise InputError(f"noise must be {tuple(shape)}, not {tuple(start.shape)}")
        if not isinstance(start, torch.Tensor):
            start = torch.from_numpy(np.array(start, np.float32))
        start = start.to(self.device, torch.float32)
        conditioning, _ = self.condition(features)
        guidances = start.new_full(shape[:1], guidance)
        null = without_condition(conditioning)

        def velocity(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            times = t.expand(shape[0])
            v = self.velocity(z, times, guidances, conditioning)
            if scale == 1.0:
                return v
            return sampling.true_cfg(v, self.velocity(z, times, guidances, null), scale)

        tokens = shape[1] * shape[2] // self.config.model.mmdit.patch_size**2
        times = sampling.schedule(flow, steps, tokens).to(self.device)
        return self.decode(sampling.euler(velocity, start, times))

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B H W C] to pictures [B S S 3] around [-1, 1]."""
        return encoders.decode_latents(self.vae, latents, self.config.model.autoencoder)

    @torch.no_grad()
    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures uint8 [B S S 3] through the autoencoder and back."""
        config = self.config.model.autoencoder
        return encoders.to_uint8(self.decode(encoders.encode_latents(self.vae, images, config)))

    def edit(
        self,
        image: Picture,
        instruction: str,
        *,
        noise: torch.Tensor | np.ndarray | None = None,
        seed: int = 0,
        objects: Sequence[str] = (),
        regions: tuple[np.ndarray, np.ndarray] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        true_cfg: float | None = None,
    ) -> Image.Image:
        """The picture after the hypothesis, at the source's size; as rb_jax.Editor.edit.

        ``regions`` are masks [R G G] and which of them count [R]; without them the picture is cut
        by colour, also where rb_jax.Editor would take SAM's automatic masks. A seed's noise is not
        JAX's: ``noise`` [1, H, W, C], a latent with channels last, starts both sides from the same.
        Raises InputError for an unreadable picture, an empty or over-long instruction, settings
        out of range and noise of another shape.
        """
        pixels = as_pixels(image)
        square = to_square(pixels, self.config.data.image_size)
        example = EditExample("", "", instruction, tuple(objects), square, regions=regions)
        batch = batch_of(self.collate.arrays([example]), self.device)
        edited = self.sample(batch, noise, seed, steps, guidance, true_cfg)
        painted, codec = (
            x[0].cpu().numpy() for x in (encoders.to_uint8(edited), self.reconstruct(batch.source))
        )
        return Image.fromarray(to_source_size(painted, codec, pixels))


def without_condition(conditioning: Conditioning) -> Conditioning:
    """The null condition of classifier-free guidance: no words, no cues, the source stays."""
    return Conditioning(
        torch.zeros_like(conditioning.tokens),
        torch.zeros_like(conditioning.vector),
        conditioning.source_latent,
    )


def _check_settings(steps: int, seed: int, guidance: float, true_cfg: float) -> None:
    """InputError for what rb_jax.Editor would refuse."""
    ranges = [
        ("steps", steps, 1, MAX_STEPS),
        ("seed", seed, 0, 2**32 - 1),
        ("guidance", guidance, 0, 100),
        ("true_cfg", true_cfg, 0, 100),
    ]
    for name, value, low, high in ranges:
        if not low <= value <= high:
            raise InputError(f"{name} must be between {low} and {high}, got {value}")
