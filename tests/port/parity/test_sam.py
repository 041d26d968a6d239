"""Segment Anything against transformers' SamModel and its mask-generation pipeline."""

import dataclasses
import functools
import sys
import types

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from skimage import data

from rb_jax.config import SAMConfig
from rb_jax.models.encoders.sam import SAM, Prompts
from rb_jax.models.encoders.sam.automatic import AutomaticMaskSettings, automatic_masks
from rb_jax.models.encoders.sam.pixels import (
    fitted_size,
    preprocess,
    preprocess_picture,
    upscale_matrices,
)
from rb_jax.weights.params import merge
from tests import tiny
from tests.port.parity.sam_weights import convert, our_path

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = SAMConfig(
    image_size=56,
    patch_size=8,
    width=36,
    layers=5,
    heads=3,
    mlp_width=52,
    window_size=3,
    global_layers=(1, 4),
    out_channels=20,
    decoder_layers=2,
    decoder_heads=5,
    decoder_mlp_width=28,
    multimask_outputs=4,
    iou_head_layers=4,
    iou_head_width=24,
    mask_channels=12,
)
LOGITS = 4 * 7  # side of the mask logits
# A wider decoder, because its random masks depend more on the point.
WIDE = dataclasses.replace(
    TINY, layers=2, global_layers=(1,), out_channels=64, decoder_heads=2, multimask_outputs=3
)
SETTINGS = AutomaticMaskSettings(
    points_per_side=7, points_per_batch=20, stability_score_thresh=0.35, box_nms_thresh=0.9
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """These tensors are too small to be worth torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stock(config):
    """transformers' configuration of the same model."""
    vision = dict(
        hidden_size=config.width,
        output_channels=config.out_channels,
        mlp_dim=config.mlp_width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        window_size=config.window_size,
        global_attn_indexes=config.global_layers,
        num_pos_feats=config.out_channels // 2,
    )
    prompts = dict(
        hidden_size=config.out_channels,
        image_size=config.image_size,
        patch_size=config.patch_size,
        mask_input_channels=config.mask_channels,
    )
    decoder = dict(
        hidden_size=config.out_channels,
        mlp_dim=config.decoder_mlp_width,
        num_hidden_layers=config.decoder_layers,
        num_attention_heads=config.decoder_heads,
        attention_downsample_rate=config.attention_downsample,
        num_multimask_outputs=config.multimask_outputs,
        iou_head_depth=config.iou_head_layers,
        iou_head_hidden_dim=config.iou_head_width,
    )
    return transformers.SamConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )


@torch.no_grad()
def randomize(model):
    """Random everywhere, also where SAM starts from zeros."""
    torch.manual_seed(8)
    for name, value in model.named_parameters():
        value.normal_(0, 0.2)
        if "norm" in name and name.endswith("weight"):
            value.add_(1)
            if "neck" in name:  # prompts shall matter beside the picture
                value.mul_(0.3)
        elif name.endswith("positional_embedding"):
            value.mul_(5)
    return model.eval()


@functools.cache
def pair(config=TINY):
    """transformers' model, and ours as (graph, parameters), with the same random weights."""
    theirs = randomize(transformers.SamModel(stock(config)))
    graph, _ = nnx.split(nnx.eval_shape(lambda: SAM(config, nnx.Rngs(0))))
    return theirs, graph, convert(theirs.state_dict(), config)


def error(ours, theirs):
    """Largest difference relative to the largest value."""
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def pixels():
    images = np.stack([data.astronaut()[40:208:3, 150:318:3], data.coffee()[:56, 200:256]])
    return preprocess(jax.numpy.asarray(images), TINY.image_size)


def to_torch(array):
    return torch.tensor(np.asarray(array))


def channels_first(array):
    return to_torch(array).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(global_layers=(0, 1, 3), window_size=2),
        dict(global_layers=(), window_size=9),
        dict(global_layers=(0, 1, 2), layers=3, heads=4),
    ],
)
def test_image_embeddings(changes):
    config = dataclasses.replace(TINY, **changes)
    theirs, graph, params = pair(config)
    ours = jax.jit(lambda p, x: merge(graph, p).image_encoder(x))(params, pixels())
    with torch.no_grad():
        expected = theirs.get_image_embeddings(channels_first(pixels())).permute(0, 2, 3, 1)
    assert error(ours, expected) <= 1e-5


def test_epsilons():
    """Too small to show in the outputs of random weights."""
    theirs, graph, params = pair()
    for name, module in theirs.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            path = our_path(f"{name}.weight", TINY)
            norm = merge(graph, params)
            for part in path.split("/")[:-1]:
                norm = norm[int(part)] if part.isdigit() else getattr(norm, part)
            assert norm.epsilon == module.eps, name


def prompts(kinds):
    """Some of the kinds of prompts; two pictures, three prompts each."""
    rng = np.random.default_rng(1)
    corners = np.sort(rng.uniform(0, 56, (2, 3, 2, 2)), axis=2).reshape(2, 3, 4)
    every = dict(
        points=rng.uniform(0, 56, (2, 3, 4, 2)).astype(np.float32),
        labels=np.array([[[1, 0, 1, -1], [1, 1, -10, 0], [0, -1, -10, 1]]] * 2, np.int32),
        boxes=corners.astype(np.float32),
        masks=3 * rng.standard_normal((2, 1, LOGITS, LOGITS)).astype(np.float32),
    )
    return Prompts(**{kind: every[kind] for kind in kinds.split()})


def decode_stock(model, features, given, multimask):
    tensors = {
        f"input_{name}": None if value is None else to_torch(value)
        for name, value in vars(given).items()
    }
    out = model(image_embeddings=features, multimask_output=multimask, **tensors)
    return out.pred_masks, out.iou_scores


@pytest.mark.parametrize(
    "kinds, multimask",
    [
        ("points labels", True),
        ("points labels", False),
        ("boxes", True),
        ("masks", False),
        ("points labels boxes", False),
        ("points labels boxes masks", True),
    ],
)
def test_masks_and_iou(kinds, multimask):
    theirs, graph, params = pair()
    given, features = prompts(kinds), tiny.normal(2, 7, 7, TINY.out_channels)
    decode = jax.jit(lambda p, *args: merge(graph, p).decode(*args, multimask=multimask))
    masks, iou = decode(params, features, given)
    with torch.no_grad():
        expected = decode_stock(theirs, channels_first(features), given, multimask)
    assert masks.shape[2] == (TINY.multimask_outputs if multimask else 1)
    assert error(masks, expected[0]) <= 1e-5
    assert error(iou, expected[1]) <= 1e-5


def test_a_mask_for_each_prompt():
    """transformers takes one mask a picture: it has to be asked for one prompt at a time."""
    theirs, graph, params = pair()
    boxes, features = prompts("boxes").boxes, tiny.normal(2, 7, 7, TINY.out_channels)
    assert boxes is not None
    masks = tiny.normal(2, 3, LOGITS, LOGITS)
    decode = jax.jit(lambda p, *args: merge(graph, p).decode(*args))
    logits, _ = decode(params, features, Prompts(boxes=boxes, masks=masks))
    for i in range(3):
        one = Prompts(boxes=boxes[:, i : i + 1], masks=masks[:, i : i + 1])
        with torch.no_grad():
            expected, _ = decode_stock(theirs, channels_first(features), one, True)
        assert error(logits[:, i : i + 1], expected) <= 1e-5


def test_gradients():
    """Of a loss that reads every parameter: two calls of the decoder, with and without a mask."""
    theirs, graph, params = pair()
    calls = [
        (prompts("points labels boxes masks"), True),
        (prompts("points labels"), False),
    ]
    rng = np.random.default_rng(2)
    sizes = [((2, 3, m, LOGITS, LOGITS), (2, 3, m)) for m in (TINY.multimask_outputs, 1)]
    weights = [[rng.standard_normal(s).astype(np.float32) for s in pair] for pair in sizes]

    def loss(params, x):
        sam = merge(graph, params)
        features, total = sam.image_encoder(x), 0.0
        for (given, multimask), weight in zip(calls, weights, strict=True):
            for out, w in zip(sam.decode(features, given, multimask), weight, strict=True):
                total += (out * w).mean()
        return total

    value, grads = jax.jit(jax.value_and_grad(loss))(params, pixels())
    theirs.zero_grad()
    features = theirs.vision_encoder(channels_first(pixels())).last_hidden_state
    total = torch.zeros(())
    for (given, multimask), weight in zip(calls, weights, strict=True):
        for out, w in zip(decode_stock(theirs, features, given, multimask), weight, strict=True):
            total = total + (out * to_torch(w)).mean()
    total.backward()
    assert abs(float(value) - total.item()) <= 1e-5 * abs(total.item())
    expected = convert({k: v.grad for k, v in theirs.named_parameters()}, TINY)
    assert grads.keys() == expected.keys()
    largest = max(np.abs(g).max() for g in expected.values())
    for path, grad in expected.items():
        # The loss does not depend on the biases of keys: what is left of them is rounding.
        scale = largest if path.endswith("k_proj/bias") else np.abs(grad).max()
        assert np.abs(grads[path] - grad).max() <= 1e-4 * scale, path


def processor():
    size = TINY.image_size
    return transformers.SamImageProcessorPil(
        size={"longest_edge": size}, pad_size={"height": size, "width": size}
    )


@pytest.mark.parametrize("size", [(120, 90), (41, 97), (56, 56), (30, 30)])
def test_pictures_of_any_shape(size):
    picture = Image.fromarray(data.chelsea()).resize(size)
    expected = processor()(images=picture, return_tensors="pt")["pixel_values"]
    ours = preprocess_picture(np.asarray(picture), TINY.image_size)
    assert error(ours, expected.permute(0, 2, 3, 1)) <= 1e-6


@pytest.mark.parametrize("height, width, size, low", [(97, 41, 56, 28), (30, 200, 64, 16)])
def test_logits_return_to_the_picture(height, width, size, low):
    logits, (fitted_h, fitted_w) = tiny.normal(2, low, low), fitted_size(height, width, size)
    rows, columns = upscale_matrices(height, width, size, low)
    resize = functools.partial(
        torch.nn.functional.interpolate, mode="bilinear", align_corners=False
    )
    expected = resize(to_torch(logits)[None], (size, size))[..., :fitted_h, :fitted_w]
    expected = resize(expected, (height, width))[0]
    assert error(rows @ logits @ columns.T, expected) <= 1e-5


def textbook_nms(boxes, scores, idxs, iou_threshold):
    """torchvision.ops.batched_nms for boxes of one class, by its definition."""
    rows, kept = boxes.tolist(), []
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in rows]
    for i in scores.argsort(descending=True, stable=True).tolist():
        for j in kept:
            sides = [
                min(rows[i][axis + 2], rows[j][axis + 2]) - max(rows[i][axis], rows[j][axis])
                for axis in (0, 1)
            ]
            common = max(sides[0], 0) * max(sides[1], 0)
            if common > iou_threshold * (areas[i] + areas[j] - common):
                break
        else:
            kept.append(i)
    return torch.tensor(kept, dtype=torch.long)


@pytest.fixture
def pipeline(monkeypatch):
    """The real pipeline without torchvision, of which it only calls batched_nms.

    That function is put in torchvision's place, and the check for the package is taken off the
    one method that needs it.
    """
    for name in ("torchvision", "torchvision.ops", "torchvision.ops.boxes"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(
        sys.modules["torchvision.ops.boxes"], "batched_nms", textbook_nms, raising=False
    )
    method = "post_process_for_mask_generation"
    unchecked = getattr(transformers.SamImageProcessorPil, method).__wrapped__
    monkeypatch.setattr(transformers.SamImageProcessorPil, method, unchecked)
    return transformers.pipeline(
        "mask-generation", model=pair(WIDE)[0], image_processor=processor(), device="cpu"
    )


@pytest.mark.parametrize(
    "name, size, crops",
    [("astronaut", (240, 180), 1), ("coffee", (200, 300), 1), ("chelsea", (200, 200), 0)],
)
def test_automatic_masks(pipeline, name, size, crops):
    theirs, graph, params = pair(WIDE)
    picture = Image.fromarray(getattr(data, name)()).resize(size)
    # Thresholds that keep a part of what random weights make of this picture.
    inputs = processor()(images=picture, return_tensors="pt")["pixel_values"]
    grid = torch.rand(1, 49, 1, 2, generator=torch.Generator().manual_seed(0)) * TINY.image_size
    with torch.no_grad():
        out = theirs(pixel_values=inputs, input_points=grid, input_labels=torch.ones(1, 49, 1))
    settings = dataclasses.replace(
        SETTINGS,
        pred_iou_thresh=float(np.quantile(out.iou_scores, 0.1)),
        mask_threshold=float(np.quantile(out.pred_masks, 0.95)),
        stability_score_offset=0.05 * out.pred_masks.std().item(),
        crop_n_layers=crops,
    )
    expected = pipeline(
        picture,
        points_per_batch=settings.points_per_batch,
        points_per_crop=settings.points_per_side,
        pred_iou_thresh=settings.pred_iou_thresh,
        stability_score_thresh=settings.stability_score_thresh,
        stability_score_offset=settings.stability_score_offset,
        mask_threshold=settings.mask_threshold,
        crops_n_layers=crops,
        crops_nms_thresh=settings.box_nms_thresh,
        output_bboxes_mask=True,
    )
    ours = automatic_masks(merge(graph, params), np.asarray(picture), settings)
    assert 3 <= len(expected["masks"]) <= 60
    theirs = np.stack(expected["masks"])
    assert ours.masks.shape == theirs.shape
    union = (ours.masks | theirs).sum((1, 2))
    assert ((ours.masks & theirs).sum((1, 2)) >= 0.99 * union).all()
    np.testing.assert_allclose(ours.iou_scores, expected["scores"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.boxes, expected["bounding_boxes"], atol=1)


def test_vit_huge_has_as_many_parameters():
    config = SAMConfig()
    _, variables = nnx.split(nnx.eval_shape(lambda: SAM(config, nnx.Rngs(0))))
    ours = sum(leaf.size for leaf in jax.tree.leaves(variables))
    with torch.device("meta"):
        theirs = transformers.SamModel(stock(config))
    assert ours == sum(p.numel() for p in theirs.parameters()) == 641_090_864
