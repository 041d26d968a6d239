"""The whole model: masks, what reaches what, the loss, the sampler, every ablation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rb_jax.models.flow import matching
from rb_jax.models.flow.training import keep
from rb_jax.models.types import Text
from rb_jax.train.flops import count_flops
from rb_jax.weights.params import cast_params
from tests import tiny

ROW = 1  # where a batch is changed; it has padding of every kind


def stages(model, batch):
    """What each stage says: R_V, R_T and V where they are valid, L_MLLM, the conditioning."""
    features = model.encode(batch)
    cues = model.frce(features)
    v, loss = model.mllm(features, cues)
    return {
        "visual cues": jnp.where(cues.visual_mask[..., None], cues.visual, 0),
        "textual cues": jnp.where(cues.textual_mask[..., None], cues.textual, 0),
        "guidance": v,
        "loss": loss,
        "tokens": model._enhance(model.qformer(v), features, cues),
        "vector": features.pooled,
        "latent": features.source_latent,
    }


@pytest.fixture(scope="module")
def run():
    compiled = tiny.jit(stages)
    return lambda batch: jax.tree.map(np.asarray, compiled(tiny.params(), batch))


@pytest.fixture(scope="module")
def base(run):
    return run(tiny.batch())


def replace(batch, **changes):
    return dataclasses.replace(batch, **changes)


def edited(array, index, value):
    array = array.copy()
    array[index] = value
    return array


def other_ids(text, index):
    return Text(edited(text.ids, index, text.ids[index] + 17), text.mask)


def padding(text):
    return Text(np.where(text.mask, text.ids, 23), text.mask)


# Name -> a change of row ROW (or of all padding), and what it must change; the rest must stay.
IGNORED = {
    "text padding": lambda b: replace(b, text=padding(b.text)),
    "prompt padding": lambda b: replace(b, prompt=padding(b.prompt)),
    "object name padding": lambda b: replace(b, objects=padding(b.objects)),
    "absent objects": lambda b: replace(
        b,
        objects=Text(
            np.where(b.object_mask[..., None], b.objects.ids, 29),
            np.where(b.object_mask[..., None], b.objects.mask, True),
        ),
    ),
    "padded regions": lambda b: replace(
        b, regions=np.where(b.region_mask[..., None, None], b.regions, ~b.regions)
    ),
}
REASONED = {"guidance", "loss", "tokens"}
CUES = {"visual cues", "textual cues"} | REASONED
NOTICED = {
    "text": (lambda b: replace(b, text=other_ids(b.text, (ROW, 1))), {"tokens", "vector"}),
    "prompt": (lambda b: replace(b, prompt=other_ids(b.prompt, (ROW, 1))), REASONED),
    "object": (
        lambda b: replace(b, objects=other_ids(b.objects, (ROW, 0, 1))),
        {"textual cues"} | REASONED,
    ),
    "region": (lambda b: replace(b, regions=edited(b.regions, (ROW, 0), ~b.regions[ROW, 0])), CUES),
    "no object": (
        lambda b: replace(b, object_mask=edited(b.object_mask, ROW, False)),
        {"textual cues"} | REASONED,
    ),
    "no region": (lambda b: replace(b, region_mask=edited(b.region_mask, ROW, False)), CUES),
    "picture": (
        lambda b: replace(b, source=edited(b.source, ROW, 255 - b.source[ROW])),
        CUES | {"latent"},
    ),
}


@pytest.mark.parametrize("name", IGNORED)
def test_what_is_masked_changes_nothing(run, base, name):
    changed = IGNORED[name](tiny.batch())
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, changed, tiny.batch())))
    for stage, value in run(changed).items():
        np.testing.assert_array_equal(value, base[stage], stage)


@pytest.mark.parametrize("name", NOTICED)
def test_what_is_there_changes_what_comes_after_it(run, base, name):
    change, expected = NOTICED[name]
    after = run(change(tiny.batch()))
    differing = {k for k in base if np.abs(after[k][ROW] - base[k][ROW]).max() > 1e-4}
    assert differing == expected
    others = [row for row in range(3) if row != ROW]
    for stage, value in after.items():
        np.testing.assert_array_equal(value[others], base[stage][others], stage)


def test_nothing_at_all_to_look_at_is_finite(run):
    batch = tiny.batch()
    bare = replace(
        batch,
        region_mask=np.zeros_like(batch.region_mask),
        object_mask=np.zeros_like(batch.object_mask),
    )
    out = run(bare)
    assert all(np.isfinite(value).all() for value in out.values())
    # What absent regions and objects hold is then of no consequence.
    other = replace(bare, regions=~bare.regions, objects=other_ids(bare.objects, (ROW, 0, 1)))
    jax.tree.map(np.testing.assert_array_equal, run(other), out)


def test_less_padding_changes_nothing(run, base):
    batch = tiny.batch()

    def cut(text):
        length = int(text.mask.sum(-1).max())
        return Text(text.ids[..., :length], text.mask[..., :length])

    regions, objects = int(batch.region_mask.sum(1).max()), int(batch.object_mask.sum(1).max())
    shorter = replace(
        batch,
        text=cut(batch.text),
        prompt=cut(batch.prompt),
        objects=cut(Text(batch.objects.ids[:, :objects], batch.objects.mask[:, :objects])),
        object_mask=batch.object_mask[:, :objects],
        regions=batch.regions[:, :regions],
        region_mask=batch.region_mask[:, :regions],
    )
    smaller = [
        a.shape != b.shape for a, b in zip(*map(jax.tree.leaves, (shorter, batch)), strict=True)
    ]
    assert sum(smaller) == 9
    out = run(shorter)
    for stage in ("guidance", "loss", "tokens", "vector"):
        np.testing.assert_allclose(out[stage], base[stage], rtol=1e-3, atol=1e-3, err_msg=stage)


def test_precomputed_latents_take_the_pictures_place(base):
    latent = np.float16(base["latent"])
    encode = tiny.jit(lambda model, batch: model.encode(batch).source_latent)
    given = replace(tiny.batch(), source_latent=latent)
    np.testing.assert_array_equal(encode(tiny.params(), given), latent)


# Ablations and variants, several independent ones to a model: each takes seconds to compile.
VARIANTS = {
    "no frce, sequence, mlp projector": dict(
        model__frce__enabled=False,
        model__cme__enabled=False,
        model__mmdit__source="sequence",
        model__mllm__projector="mlp",
    ),
    "patches only, no guidance embedding, no lora": dict(
        model__frce__region_branch=False,
        model__mmdit__guidance_embed=False,
        model__mllm__lora_rank=0,
    ),
    "regions only, no cme, prediction of the data": dict(
        model__frce__patch_branch=False,
        model__cme__enabled=False,
        model__mmdit__prediction="data",
    ),
    "no id controller, as many kv heads, bfloat16": dict(
        model__frce__id_controller=False, model__mllm__kv_heads=6, model__dtype="bfloat16"
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains_and_samples(name):
    config, rng = tiny.config(**VARIANTS[name]), jax.random.key(0)
    model, batch = config.model, tiny.batch(config)
    params = cast_params(config, tiny.params(config))
    loss, terms = tiny.jit(lambda brain, b: brain.loss(b, rng), config)(params, batch)
    assert loss.dtype == jnp.float32 and np.isfinite(loss)
    np.testing.assert_allclose(loss, terms["loss_flow"] + terms["loss_mllm"], rtol=1e-5)
    apart = np.array([pair for name, pair in terms.items() if name.startswith("loss_flow/t_")])
    total, count = apart.sum(axis=0)
    np.testing.assert_allclose(total / count, terms["loss_flow"], rtol=1e-5)
    assert min(terms["loss_flow"], terms["loss_mllm"]) > 0

    def shapes(params, batch):
        brain = tiny.merged(params, config)
        return brain.condition(brain.encode(batch))[0], brain.sample(batch, rng)

    conditioning, pictures = jax.eval_shape(shapes, params, batch)
    assert pictures.shape == batch.source.shape and pictures.dtype == jnp.float32
    queries = 2 * model.cme.queries if model.cme.enabled else model.qformer.queries
    assert conditioning.tokens.shape == (3, queries, model.mmdit.context_width)
    assert conditioning.tokens.dtype == model.dtype


def test_loss_is_the_error_of_the_velocity():
    """L_DM recomputed from its parts; the weights of the two losses are the configuration's."""
    config = tiny.config(
        train__mllm_loss_weight=0.25,
        train__flow_loss_weight=3.0,
        flow__drop_condition=0.5,
        flow__drop_source=0.4,
    )
    flow, rng = config.flow, jax.random.key(3)

    def one_example(time, noise, kept, guidance, shape):
        t = matching.sample_times(time, 1, flow, 16)[0]
        kept = jax.random.bernoulli(kept, jnp.array([0.5, 0.6]))
        guidance = jax.random.uniform(guidance, minval=1.0, maxval=5.0)
        return t, jax.random.normal(noise, shape), kept, guidance

    def parts(model, batch):
        conditioning, mllm = model.condition(model.encode(batch))
        x0 = model.encode_latents(batch.target)
        keys = [jax.random.split(jax.random.fold_in(rng, row), 4) for row in range(3)]
        rows = [one_example(k[0], k[1], k[2], k[3], x0.shape[1:]) for k in keys]
        t, noise, kept, guidance = map(jnp.stack, zip(*rows, strict=True))
        conditioning = keep(conditioning, kept)
        z_t = (1 - t[:, None, None, None]) * x0 + t[:, None, None, None] * noise
        velocity = model.mmdit(z_t, t, guidance, conditioning)
        return model.loss(batch, rng), ((velocity - (noise - x0)) ** 2).mean(), mllm.mean()

    (loss, terms), error, mllm = tiny.jit(parts, config)(tiny.params(config), tiny.batch())
    np.testing.assert_allclose(terms["loss_flow"], error, rtol=1e-4)
    np.testing.assert_allclose(terms["loss_mllm"], mllm, rtol=1e-5)
    np.testing.assert_allclose(loss, 0.25 * mllm + 3.0 * error, rtol=1e-4)


def test_no_gradient_reaches_the_autoencoder():
    rest = {k: v for k, v in tiny.params().items() if not k.startswith("autoencoder/")}

    @jax.jit
    def gradient(autoencoder, batch):
        return jax.grad(
            lambda a: tiny.merged(rest | a).loss(batch, jax.random.key(0))[0],
        )(autoencoder)

    autoencoder = {k: v for k, v in tiny.params().items() if k not in rest}
    grads = gradient(autoencoder, tiny.batch())
    assert grads and not any(np.any(g) for g in grads.values())


def test_remat_wraps_every_stack():
    groups = ("double_blocks", "single_blocks", "mllm", "others")
    config = tiny.config(**{f"remat__{group}": "full" for group in groups})
    wrapped = {}
    for remat, setting in ((False, tiny.CONFIG), (True, config)):
        graph = jax.make_jaxpr(tiny.jit(lambda m, b: m.loss(b, jax.random.key(0))[0], setting))
        text = str(graph(tiny.params(), tiny.batch()))
        wrapped[remat] = text.count("prevent_cse="), text.count("scan[")
    assert wrapped[False][0] == 0
    # Of each stack one: vision, text twice, FRCE 3, LLaMA, QFormer, CME 2, MMDiT 2.
    assert wrapped[True][0] == 12 <= wrapped[True][1]


@pytest.fixture(scope="module")
def samplers():
    """Samplers with classifier-free guidance off and on, as functions of (batch, rng, guidance)."""

    def sample(true_cfg):
        compiled = tiny.jit(lambda model, b, rng, g: model.sample(b, rng, 2, g, true_cfg))
        return lambda *args: np.asarray(compiled(tiny.params(), *args))

    return sample(1.0), sample(4.0)


def test_the_two_guidances_are_two_settings(samplers):
    plain, guided = samplers
    batch, rng = tiny.batch(), jax.random.key(0)
    pictures = {(f, g): f(batch, rng, jnp.float32(g)) for f in (plain, guided) for g in (1.5, 4.0)}
    made = list(pictures.values())
    for i, one in enumerate(made):
        for other in made[i + 1 :]:
            assert np.abs(one - other).max() > 1e-3


def test_sampling_is_a_function_of_the_rng_and_the_row(samplers):
    plain, _ = samplers
    batch, rng, g = tiny.batch(), jax.random.key(0), jnp.float32(3.0)
    out = plain(batch, rng, g)
    np.testing.assert_array_equal(plain(batch, rng, g), out)
    assert np.abs(plain(batch, jax.random.key(1), g) - out).max() > 1e-3
    twins = jax.tree.map(lambda x: x[[0, 0, 0]], batch)
    same = plain(twins, rng, g)
    assert np.abs(same[0] - same[1]).max() > 1e-3  # rows draw different noise


def test_conditioning_is_computed_once_and_the_null_velocity_only_when_asked_for():
    batch, params, rng = tiny.batch(rows=1), tiny.params(), jax.random.key(0)

    def flops(steps, true_cfg):
        return count_flops(
            lambda p, b: tiny.merged(p).sample(b, rng, steps, 3.0, true_cfg), params, batch
        )

    conditioning, times = tiny.conditioning(), jnp.ones(1)
    z = jnp.zeros_like(conditioning.source_latent)
    one = count_flops(lambda p: tiny.merged(p).mmdit(z, times, times, conditioning), params)
    assert flops(7, 1.0) - flops(2, 1.0) == 5 * one
    assert flops(7, 2.0) - flops(2, 2.0) == 10 * one
