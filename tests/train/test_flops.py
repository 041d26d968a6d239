"""Counting FLOPs, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from rb_jax.models.layers.attention import attention
from rb_jax.train.flops import count_flops
from tests import tiny


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


@pytest.mark.parametrize(
    ("equation", "left", "right", "expected"),
    [
        ("ij,jk->ik", (3, 5), (5, 7), 2 * 3 * 5 * 7),
        ("bij,bjk->bik", (4, 3, 5), (4, 5, 7), 2 * 4 * 3 * 5 * 7),
        ("ij,ij->", (3, 5), (3, 5), 2 * 3 * 5),
        ("bthd,bshd->bhts", (2, 3, 5, 7), (2, 11, 5, 7), 2 * 2 * 5 * 3 * 11 * 7),
    ],
)
def test_matrix_products(equation, left, right, expected):
    count = count_flops(lambda a, b: jnp.einsum(equation, a, b), shape(*left), shape(*right))
    assert count == expected


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 3)])
def test_convolutions(stride, groups):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    count = count_flops(convolve, shape(2, 8, 10, 6), shape(3, 5, 6 // groups, 9))
    pixels = 2 * (8 // stride) * (10 // stride)
    assert count == 2 * pixels * 9 * 3 * 5 * 6 / groups


def layers(x, kernels, length=6, wrap=lambda f: f):
    def body(x, kernel):
        x, _ = jax.lax.scan(lambda y, _: (jax.nn.relu(y @ kernel), None), x, None, 2)
        return x, None

    return jax.lax.scan(wrap(body), x, kernels, length)[0]


def test_scans_count_times_their_length_also_inside_each_other():
    one = 2 * 4 * 5 * 5
    assert count_flops(layers, shape(4, 5), shape(6, 5, 5)) == 6 * 2 * one
    inside = jax.jit(lambda x, k: layers(x, k) @ k[0])
    assert count_flops(inside, shape(4, 5), shape(6, 5, 5)) == (6 * 2 + 1) * one


def test_remat_of_the_forward_pass_adds_nothing():
    wrapped = lambda x, k: layers(x, k, wrap=jax.checkpoint)  # noqa: E731
    args = shape(4, 5), shape(6, 5, 5)
    assert count_flops(wrapped, *args) == count_flops(layers, *args)


def test_elementwise_work_is_free():
    assert count_flops(lambda x: jnp.tanh(x).sum() + jnp.sort(x)[0], shape(50)) == 0.0


@pytest.mark.parametrize("platform", ["tpu", "gpu", "cpu"])
def test_attention_counts_in_full_where_a_kernel_would_hide_it(platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    q = jax.ShapeDtypeStruct((2, 600, 3, 128), jnp.bfloat16)
    assert count_flops(lambda q: attention(q, q, q), q) == 4 * 2 * 3 * 600**2 * 128


def test_the_flow_model_by_hand():
    """Linear layers 2 x parameters x tokens, attention 4 x tokens^2 x width, for each block."""
    config = tiny.CONFIG.model.mmdit
    z = shape(1, 8, 8, 3)
    conditioning = tiny.conditioning(tokens=18)

    def velocity(params, z, t, conditioning):
        return tiny.merged(params).mmdit(z, t, t, conditioning)

    count = count_flops(velocity, tiny.params(), z, shape(1), conditioning)
    width, context, image, text = config.width, config.context_width, 16, 18
    hidden, tokens = int(width * config.mlp_ratio), image + text
    attention = 4 * tokens**2 * width
    linear = 2 * tokens * (4 * width * width + 2 * width * hidden)
    double = attention + linear + 2 * 2 * width * 6 * width
    single = attention + linear + 2 * width * 3 * width
    ends = 2 * (image * 24 * width + text * context * width + image * width * 12)
    embeds = 2 * width * (256 + 40 + 256 + 3 * width) + 2 * width * 2 * width
    blocks = config.double_blocks * double + config.single_blocks * single
    assert count == blocks + ends + embeds
