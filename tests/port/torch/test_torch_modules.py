"""Our torch modules alone: names of the tensors, masks, and the small pure functions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

for library in ("torch", "transformers", "diffusers", "peft"):
    pytest.importorskip(library)

import torch  # noqa: E402

from rb_jax.config import CMEConfig, FlowConfig, FRCEConfig, ModelConfig, QFormerConfig  # noqa: E402
from rb_jax.port.torch import modules, sampling  # noqa: E402
from rb_jax.port.torch.mllm import image_token_loss  # noqa: E402

NORM = ("weight", "bias")


def both(*names: str) -> set[str]:
    return {f"{name}.{kind}" for name in names for kind in NORM}


def attention(name: str) -> set[str]:
    return {f"{name}.in_proj_weight", f"{name}.in_proj_bias"} | both(f"{name}.out_proj")


def cross(name: str) -> set[str]:
    return both(f"{name}.norm_q", f"{name}.norm_kv") | attention(f"{name}.attn")


def extractor(name: str) -> set[str]:
    block = f"{name}.blocks.0"
    names = both(f"{name}.proj_in", f"{name}.norm", f"{block}.norm1", f"{block}.norm2")
    return names | both(f"{block}.mlp.0", f"{block}.mlp.3") | attention(f"{block}.attn")


def test_names_are_the_authors():
    layer = "id_controller.layers.0"
    controller = both(
        "id_controller.out_norm", f"{layer}.norm_ff", f"{layer}.ff.0", f"{layer}.ff.3"
    )
    controller |= cross(layer)
    frce = both("text_proj_in") | {"local_type_emb", "global_type_emb"} | controller
    frce |= extractor("patch_extractor") | extractor("region_extractor")
    assert set(modules.FRCE(ModelConfig()).state_dict()) == frce

    block = "blocks.0"
    norms = ("norm_self", "norm_cross_q", "norm_cross_kv", "norm_ffn", "ffn.0", "ffn.3")
    qformer = {"queries"} | both("input_proj", "out_norm", *(f"{block}.{n}" for n in norms))
    qformer |= attention(f"{block}.self_attn") | attention(f"{block}.cross_attn")
    assert set(modules.QFormer(5, QFormerConfig(layers=1)).state_dict()) == qformer

    cme = set()
    for side in ("visual_enhancer", "text_enhancer"):
        block = f"{side}.blocks.0"
        for name in ("attn_q_vhat", "attn_e_r", "attn_fuse"):
            cme |= cross(f"{block}.{name}")
        cme |= both(*(f"{block}.{n}" for n in ("norm_fuse", "ffn.norm", "ffn.ff.0", "ffn.ff.3")))
        cme |= {f"{side}.queries"} | cross(f"{side}.final_attn") | both(f"{side}.final_norm")
    assert set(modules.CME(CMEConfig(blocks=1)).state_dict()) == cme


@pytest.mark.parametrize(
    ("switch", "gone"),
    [
        ("patch_branch", ("patch_extractor", "local_type_emb")),
        ("region_branch", ("region_extractor", "global_type_emb")),
        ("id_controller", ("id_controller",)),
    ],
)
def test_a_switched_off_branch_has_no_tensors(switch, gone):
    config = dataclasses.replace(ModelConfig(), frce=FRCEConfig(**{switch: False}))
    full, less = (set(modules.FRCE(c).state_dict()) for c in (ModelConfig(), config))
    assert full - less == {name for name in full if name.startswith(gone)}


def test_attention_is_torchs_and_empty_rows_give_the_bias():
    theirs, ours = torch.nn.MultiheadAttention(12, 3, batch_first=True), modules.Attention(12, 3)
    torch.nn.init.normal_(theirs.in_proj_bias)
    torch.nn.init.normal_(theirs.out_proj.bias)
    ours.load_state_dict(theirs.state_dict())
    query, context = torch.randn(3, 4, 12), torch.randn(3, 5, 12, requires_grad=True)
    mask = torch.rand(3, 5) > 0.5
    mask[:, 2], mask[1] = True, False
    made = ours(query, context, mask)
    expected, _ = theirs(query, context, context, key_padding_mask=~mask)
    torch.testing.assert_close(made[::2], expected[::2])
    torch.testing.assert_close(made[1], ours.out_proj.bias.expand(4, -1))
    made.sum().backward()
    assert context.grad is not None and context.grad.isfinite().all()
    assert not context.grad[1].any()


@pytest.mark.parametrize("patch", [1, 2])
def test_packing(patch):
    latents = torch.randn(2, 4, 6, 3)
    tokens = sampling.pack(latents, patch)
    assert tokens.shape == (2, 24 // patch**2, 3 * patch**2)
    torch.testing.assert_close(sampling.unpack(tokens, 4, 6, patch), latents)
    # The first token is the upper left square, channel slowest.
    corner = latents[0, :patch, :patch].permute(2, 0, 1).flatten()
    torch.testing.assert_close(tokens[0, 0], corner)


def test_schedule_and_euler():
    times = sampling.schedule(FlowConfig(), 5, 300)
    assert times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()
    assert (times[1:-1] > torch.linspace(1, 0, 6)[1:-1]).all()
    torch.testing.assert_close(
        sampling.schedule(FlowConfig(shift=False), 4, 300), torch.tensor([1.0, 0.75, 0.5, 0.25, 0])
    )
    # Straight paths are followed exactly: velocity eps - x0 leads from eps to x0.
    x0, noise = torch.randn(2, 1, 2, 2, 3)
    end = sampling.euler(lambda z, t: noise - x0, noise, times)
    torch.testing.assert_close(end, x0)
    z = 0.7 * x0 + 0.3 * noise
    torch.testing.assert_close(sampling.velocity_of_data(x0, z, torch.tensor([0.3])), noise - x0)


def test_noise_depends_on_seed_and_row_alone():
    shape = (3, 2, 2, 4)
    noise = sampling.draw_noise(shape, 5)
    torch.testing.assert_close(sampling.draw_noise((1, 2, 2, 4), 5), noise[:1])
    assert noise.dtype == torch.float32 and not torch.equal(noise[0], noise[1])
    assert not torch.equal(sampling.draw_noise(shape, 6), noise)


def test_image_token_loss():
    logits = torch.tensor(np.random.default_rng(0).standard_normal((2, 3, 10 + 3)))
    p = logits.softmax(-1)
    expected = -(p[:, 0, 10].log() + p[:, 1, 11].log() + p[:, 2, 12].log())
    torch.testing.assert_close(image_token_loss(logits, 10), expected.float())
