"""The families that have stock classes in diffusers and transformers.

Each stage has inputs of its own, so that an error shows where it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,  # pyright: ignore[reportPrivateImportUsage]
    FluxTransformer2DModel,  # pyright: ignore[reportPrivateImportUsage]
)
from transformers import (
    CLIPModel,
    CLIPTextModel,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    SamModel,
)

from rb_jax.models.encoders.sam import Prompts
from rb_jax.models.pixels import to_float
from rb_jax.models.types import Conditioning
from rb_jax.port.family import Part, read_json
from rb_jax.port.parity.pair import (
    GUIDANCE,
    ROWS,
    TIMES,
    WORDS,
    Inputs,
    Ours,
    Pair,
    Theirs,
    channels_first,
    channels_last,
    normal,
    pictures,
    tensor,
    words,
)
from rb_jax.port.torch import encoders, sampling
from rb_jax.port.torch.folder import load_stock

# FLUX: one velocity, at another time and guidance in each row ------------------------------------


def flux_inputs(part: Part, stock: Any, rng: np.random.Generator) -> Inputs:
    model, side = part.model, part.model.mmdit.patch_size
    latent = (ROWS, 4 * side, 5 * side, model.autoencoder.latent_channels)
    return {
        "z_t": normal(rng, *latent),
        "source": normal(rng, *latent),
        "t": np.array(TIMES, np.float32),
        "guidance": np.array(GUIDANCE, np.float32),
        "tokens": normal(rng, ROWS, 7, model.mmdit.context_width),
        "vector": normal(rng, ROWS, model.text.width),
    }


def flux_ours(modules: Mapping[str, Any], part: Part, x: Inputs) -> Ours:
    given = Conditioning(x["tokens"], x["vector"], x["source"])
    return {"velocity": modules["mmdit"](x["z_t"], x["t"], x["guidance"], given)}


def flux_theirs(stock: Any, part: Part, x: Inputs) -> Theirs:
    mmdit, (_, height, width, _) = part.model.mmdit, x["z_t"].shape
    side, by_channel = mmdit.patch_size, mmdit.source == "channel"
    z_t, source = (sampling.pack(tensor(x[name]), side) for name in ("z_t", "source"))
    images = [0] if by_channel else [0, 1]  # ids of the pictures in the sequence
    tokens = torch.cat([z_t, source], dim=-1 if by_channel else 1)
    unused = stock.config.in_channels - tokens.shape[-1]
    out = stock(
        hidden_states=torch.nn.functional.pad(tokens, (0, unused)),
        encoder_hidden_states=tensor(x["tokens"]),
        pooled_projections=tensor(x["vector"]),
        timestep=tensor(x["t"]),
        guidance=tensor(x["guidance"]) if stock.config.guidance_embeds else None,
        img_ids=torch.cat([sampling.position_ids(height, width, side, i) for i in images]),
        txt_ids=torch.zeros(x["tokens"].shape[1], 3),
    ).sample
    return {"velocity": sampling.unpack(out[:, : z_t.shape[1]], height, width, side)}


# FLUX's autoencoder: both halves from inputs of their own ----------------------------------------


def vae_inputs(part: Part, stock: Any, rng: np.random.Generator) -> Inputs:
    config = part.model.autoencoder
    down = config.downsampling
    latents = normal(rng, ROWS, 4, 4, config.latent_channels)
    return {"images": pictures(rng, 4 * down), "latents": latents}


def vae_ours(modules: Mapping[str, Any], part: Part, x: Inputs) -> Ours:
    model, images = modules["autoencoder"], to_float(x["images"])
    mean, log_variance = model.moments(images)
    latents = model.config.scale_factor * (mean - model.config.shift_factor)
    picture = model.decode(x["latents"])
    return {"mean": mean, "log-variance": log_variance, "latents": latents, "picture": picture}


def vae_theirs(stock: Any, part: Part, x: Inputs) -> Theirs:
    scale, shift = stock.config.scaling_factor, stock.config.shift_factor or 0.0
    posterior = stock.encode(encoders.to_float(channels_first(x["images"]))).latent_dist
    mean, log_variance = channels_last(posterior.mean), channels_last(posterior.logvar)
    picture = channels_last(stock.decode(channels_first(x["latents"]) / scale + shift).sample)
    latents = scale * (mean - shift)
    return {"mean": mean, "log-variance": log_variance, "latents": latents, "picture": picture}


# CLIP: whichever towers both sides have ----------------------------------------------------------


def clip_stock(folder: Path, part: Part) -> Any:
    kinds = {"clip_text_model": CLIPTextModel, "clip_vision_model": CLIPVisionModel}
    kind = str(read_json(folder / "config.json").get("model_type"))
    return load_stock(kinds.get(kind, CLIPModel), folder, dtype=torch.float32)


def clip_inputs(part: Part, stock: Any, rng: np.random.Generator) -> Inputs:
    inputs, model = {}, part.model
    if "vision" in part.values:
        inputs["images"] = pictures(rng, model.vision.image_size)
    if "text" in part.values:
        config = getattr(stock.config, "text_config", stock.config)
        count, length = model.text.vocab_size, min(WORDS, model.text.max_length)
        # transformers takes id 2 in old configurations to mean: the largest id ends the text.
        end = count - 1 if config.eos_token_id == 2 else config.eos_token_id
        ids, mask = words(rng, min(count - 1, end), length)
        ids[np.arange(ROWS), mask.sum(axis=1) - 1] = end
        inputs |= {"ids": ids, "mask": mask}
    return inputs


def clip_ours(modules: Mapping[str, Any], part: Part, x: Inputs) -> Ours:
    stages = {}
    if "vision" in modules:
        stages["image"], stages["patches"] = modules["vision"](x["images"])
    if "text" in modules:
        stages["text"], stages["pooled"] = modules["text"](x["ids"], x["mask"])
    return stages


def clip_theirs(stock: Any, part: Part, x: Inputs) -> Theirs:
    stages = {}
    if "images" in x:
        tower = getattr(stock, "vision_model", stock)
        image, patches = encoders.encode_image(tower, tensor(x["images"]), part.model.vision)
        stages |= {"image": image, "patches": patches}
    if "ids" in x:
        tower = getattr(stock, "text_model", stock)
        out = tower(input_ids=tensor(x["ids"]).long(), attention_mask=tensor(x["mask"]).long())
        stages |= {"text": out.last_hidden_state, "pooled": out.pooler_output}
    return stages


# LLaVA: tower, projector and decoder, each from inputs of its own --------------------------------


def llava_inputs(part: Part, stock: Any, rng: np.random.Generator) -> Inputs:
    vision, mllm, inputs = part.model.vision, part.model.mllm, {}
    if "layers" in part.values["vision"]:
        inputs["images"] = pictures(rng, vision.image_size)
    inputs["patches"] = normal(rng, ROWS, 6, vision.width)
    inputs["image_tokens"] = normal(rng, ROWS, 6, mllm.width)
    inputs["ids"], inputs["mask"] = words(rng, mllm.vocab_size, WORDS)
    return inputs


def llava_ours(modules: Mapping[str, Any], part: Part, x: Inputs) -> Ours:
    stages, mllm = {}, modules["mllm"]
    if "vision" in modules:
        stages["patches"] = modules["vision"](x["images"])[1]
    stages["projector"] = mllm.mm_projector(x["patches"])
    decoder = mllm.language_model
    sequence = jnp.concatenate([x["image_tokens"], decoder.embed_tokens[...][x["ids"]]], axis=1)
    mask = jnp.concatenate([jnp.ones(x["image_tokens"].shape[:2], bool), x["mask"]], axis=1)
    states = decoder(sequence, mask)
    logits = decoder.lm_head(states)
    return stages | {"states": states * mask[..., None], "logits": logits * mask[..., None]}


def llava_theirs(stock: Any, part: Part, x: Inputs) -> Theirs:
    stages, model = {}, stock.model
    if "images" in x:
        pixels = encoders.preprocess(tensor(x["images"]), part.model.vision.image_size)
        states = model.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        stages["patches"] = states[stock.config.vision_feature_layer][:, 1:]
    stages["projector"] = model.multi_modal_projector(tensor(x["patches"]))
    words = stock.get_input_embeddings()(tensor(x["ids"]).long())
    mask = torch.cat([torch.ones(x["image_tokens"].shape[:2]), tensor(x["mask"])], dim=1)
    out = stock(
        inputs_embeds=torch.cat([tensor(x["image_tokens"]), words], dim=1),
        attention_mask=mask.long(),
        output_hidden_states=True,
    )
    states, mask = out.hidden_states[-1], mask[..., None]
    return stages | {"states": states * mask, "logits": out.logits * mask}


# SAM: the picture's map, and the masks that points ask for ---------------------------------------


def sam_inputs(part: Part, stock: Any, rng: np.random.Generator) -> Inputs:
    sam = part.model.sam
    side = sam.image_size // sam.patch_size
    return {
        "images": pictures(rng, sam.image_size),
        "features": normal(rng, ROWS, side, side, sam.out_channels),
        "points": rng.uniform(0, sam.image_size, (ROWS, 3, 2, 2)).astype(np.float32),
        "labels": rng.integers(0, 2, (ROWS, 3, 2)).astype(np.int32),
    }


def sam_ours(modules: Mapping[str, Any], part: Part, x: Inputs) -> Ours:
    model = modules["sam"]
    prompts = Prompts(points=x["points"], labels=x["labels"])
    masks, iou = model.decode(x["features"], prompts)
    return {"features": model.encode(x["images"]), "masks": masks, "iou": iou}


def sam_theirs(stock: Any, part: Part, x: Inputs) -> Theirs:
    features = encoders.encode_sam(stock, tensor(x["images"]))
    out = stock(
        image_embeddings=channels_first(x["features"]),
        input_points=tensor(x["points"]),
        input_labels=tensor(x["labels"]),
    )
    stages = {"features": channels_last(features), "masks": out.pred_masks}
    return stages | {"iou": out.iou_scores}


def stock_class(kind: Any, **options: Any) -> Callable[[Path, Part], Any]:
    return lambda folder, part: load_stock(kind, folder, **options)


FLUX = stock_class(FluxTransformer2DModel, torch_dtype=torch.float32)
VAE = stock_class(AutoencoderKL, torch_dtype=torch.float32)
LLAVA = stock_class(LlavaForConditionalGeneration, dtype=torch.float32)
SAM = stock_class(SamModel, dtype=torch.float32)
STOCK = {
    "flux": Pair("diffusers", FLUX, flux_inputs, flux_ours, flux_theirs),
    "flux_vae": Pair("diffusers", VAE, vae_inputs, vae_ours, vae_theirs),
    "clip": Pair("hf", clip_stock, clip_inputs, clip_ours, clip_theirs),
    "llava": Pair("hf", LLAVA, llava_inputs, llava_ours, llava_theirs),
    "sam": Pair("hf", SAM, sam_inputs, sam_ours, sam_theirs),
}
