"""FRCE against NumPy, and what each of its switches takes away."""

import dataclasses

import numpy as np
import pytest

from rb_jax.models.frce import FRCE, no_cues
from tests import tiny
from tests.models import reference

CONFIG = tiny.CONFIG.model.frce


def branch(params, name, tokens):
    """A cue branch on one picture's tokens."""
    p = reference.tree(params, f"frce/visual/{name}")
    x = reference.linear(p["proj_in"], tokens)
    for layer in range(len(p["blocks"]["norm1"]["scale"])):
        block = reference.tree(params, f"frce/visual/{name}/blocks", layer)
        h = reference.layer_norm(block["norm1"], x)
        x = x + reference.multihead(block["attn"], h, h, CONFIG.heads)
        x = x + reference.mlp(block["mlp"], reference.layer_norm(block["norm2"], x))
    return reference.layer_norm(p["norm"], x) + p["type_embedding"]


def controller(params, objects, cues):
    x = reference.linear(reference.tree(params, "frce/text_proj_in"), objects)
    for layer in range(CONFIG.id_controller_layers):
        block = reference.tree(params, "frce/id_controller/layers", layer)
        q, kv = (
            reference.layer_norm(block["norm_q"], x),
            reference.layer_norm(block["norm_kv"], cues),
        )
        x = x + reference.multihead(block["attn"], q, kv, CONFIG.heads)
        x = x + reference.mlp(block["ff"], reference.layer_norm(block["norm_ff"], x))
    return reference.layer_norm(reference.tree(params, "frce/id_controller/out_norm"), x)


def stage(config=tiny.CONFIG):
    """FRCE's weights under the names they have in the model, and FRCE as a function of Features."""
    params, extract = tiny.part(lambda rngs: FRCE(config.model, rngs))
    return {f"frce/{k}": v for k, v in params.items()}, lambda features: extract(params, features)


def check_visual(params, cues, features, names):
    """The cues that are there, of each row, against the branches that there should be."""
    for row in range(len(features.image)):
        tokens = {
            "patch_branch": features.patches[row],
            "region_branch": features.regions[row][features.region_mask[row]],
        }
        expected = np.concatenate([branch(params, name, tokens[name]) for name in names])
        visible = np.asarray(cues.visual)[row][np.asarray(cues.visual_mask)[row]]
        np.testing.assert_allclose(visible, expected, rtol=1e-3, atol=1e-3)
        yield row, expected


def test_cues():
    (params, extract), features = stage(), tiny.features()
    cues = extract(features)
    assert cues.visual.shape == (3, 9 + 5, CONFIG.width)
    np.testing.assert_array_equal(cues.textual_mask, features.object_mask)
    checked = check_visual(params, cues, features, ["patch_branch", "region_branch"])
    for row, visual in checked:
        expected = controller(params, features.objects[row], visual)
        np.testing.assert_allclose(np.asarray(cues.textual)[row], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kept", ["patch_branch", "region_branch"])
def test_one_branch_alone(kept):
    other = {"patch_branch": "region_branch", "region_branch": "patch_branch"}[kept]
    config = tiny.config(**{f"model__frce__{other}": False, "model__frce__id_controller": False})
    (params, extract), features = stage(config), tiny.features()
    cues = extract(features)
    assert cues.visual.shape[1] == {"patch_branch": 9, "region_branch": 5}[kept]
    for row, _ in check_visual(params, cues, features, [kept]):
        projected = reference.linear(
            reference.tree(params, "frce/text_proj_in"), features.objects[row]
        )
        np.testing.assert_allclose(np.asarray(cues.textual)[row], projected, rtol=1e-4, atol=1e-4)


def test_a_picture_without_any_region_or_object_has_finite_cues():
    features = tiny.features()
    bare = dataclasses.replace(
        features,
        region_mask=np.zeros_like(features.region_mask),
        object_mask=np.zeros_like(features.object_mask),
    )
    config = tiny.config(model__frce__patch_branch=False)
    for setting in (tiny.CONFIG, config):
        _, extract = stage(setting)
        cues = extract(bare)
        assert np.isfinite(cues.visual).all() and np.isfinite(cues.textual).all()
    # With nothing at all to look at, what the regions hold does not reach the objects.
    other = dataclasses.replace(bare, regions=bare.regions + 1)
    np.testing.assert_array_equal(extract(other).textual, cues.textual)


def test_no_cues():
    cues = no_cues(tiny.features(), 56)
    assert cues.visual.shape == cues.textual.shape == (3, 0, 56)
    assert cues.visual_mask.shape == cues.textual_mask.shape == (3, 0)
