"""The weight tables' engine: axes, joined and cut tensors, and everything that does not fit."""

import ml_dtypes
import numpy as np
import pytest

from rb_jax.errors import InputError
from rb_jax.port import table as tables
from rb_jax.port import transposition
from rb_jax.port.exporting import Arrays
from rb_jax.port.table import EXTRAS, LINEAR, Porter, Rule, Table, grouped, rule, stacked
from tests.port.cases import BFLOAT16, FLOAT16, FLOAT32, random_bits

# Each transform with a shape in torch that tells its axes apart, and that shape in ours.
TRANSFORMS = {
    "SAME": ((3, 4), (3, 4)),
    "LINEAR": ((3, 4), (4, 3)),
    "CONV": ((2, 3, 4, 5), (4, 5, 3, 2)),
    "TRANSPOSED_CONV": ((2, 3, 4, 5), (2, 4, 5, 3)),
    "POINTWISE": ((2, 3, 1, 1), (3, 2)),
    "ONE_AXIS_MORE": ((1, 3, 4), (3, 4)),
    "TWO_AXES_MORE": ((1, 1, 5), (5,)),
    "SWAPPED": ((6,), (6,)),
    "SWAPPED_LINEAR": ((6, 4), (4, 6)),
}
# Two layers of q and k (fused here), and a vocabulary that is cut in words and new words here.
SMALL = Table(
    (
        *stacked(
            "blocks.{}.",
            "blocks/",
            (0, 2),
            [
                Rule(("q.weight", "k.weight"), ("qk/kernel",), LINEAR, (2, 3)),
                Rule(("q.bias", "k.bias"), ("qk/bias",), sizes=(2, 3)),
            ],
        ),
        Rule(("head.weight",), ("head/kernel", "new/kernel"), LINEAR),
        rule("scale", "scale"),
    ),
    (r"old\..*",),
)
SHAPES = {
    "blocks/qk/kernel": (2, 4, 5),
    "blocks/qk/bias": (2, 5),
    "head/kernel": (4, 6),
    "new/kernel": (4, 1),
    "scale": (),
}
PORTER = Porter(SMALL, SHAPES)


def source(**dtypes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: random_bits(rng, dtypes.get(name.replace(".", "_"), FLOAT32), shape)
        for name, shape in ((n, PORTER.source_shape(n)) for n in PORTER.sources)
    }


def ours(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters, with their layers stacked."""
    made = {}
    for path, slot in PORTER.targets.items():
        layers = list(PORTER.to_ours(Arrays(values), path))
        assert all(x.flags.c_contiguous for x in layers)
        made[path] = layers[0] if slot.rule.layers is None else np.stack(layers)
    return made


def refusal(check, *args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        check(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_inverse_bit_for_bit(name):
    transform, (theirs, own) = getattr(tables, name), TRANSFORMS[name]
    assert transform.torch_shape(own) == theirs
    for dtype in (FLOAT32, FLOAT16, BFLOAT16, np.dtype(np.int32)):
        x = random_bits(np.random.default_rng(1), dtype, theirs)
        there = transform.to_ours(x)
        back = transform.to_torch(there)
        assert there.shape == own and back.dtype == dtype
        assert back.tobytes() == x.tobytes()


def test_every_transform_is_tested():
    constants = {n for n, v in vars(tables).items() if isinstance(v, tables.Transform)}
    assert constants == set(TRANSFORMS)


def test_shapes_cost_nothing_however_large_they_are():
    huge = (2**30, 2**30)
    assert all(getattr(tables, n).torch_shape(huge) for n in ("LINEAR", "SWAPPED_LINEAR"))


def test_swapped_exchanges_the_halves():
    np.testing.assert_array_equal(tables.SWAPPED.to_ours(np.arange(6)), [3, 4, 5, 0, 1, 2])


def test_joined_and_cut_tensors_come_back():
    values = source()
    params = ours(values)
    assert {path: x.shape for path, x in params.items()} == SHAPES
    q, k = values["blocks.2.q.weight"], values["blocks.2.k.weight"]
    assert params["blocks/qk/kernel"][1].tobytes() == np.concatenate([q, k]).T.tobytes()
    assert params["new/kernel"].tobytes() == values["head.weight"][6:].T.tobytes()
    for name, value in values.items():
        (back,) = PORTER.to_torch(Arrays(params), name)
        assert back.flags.c_contiguous
        assert (back.shape, back.tobytes()) == (value.shape, value.tobytes())


def test_a_porter_serves_several_models():
    """The joined tensor that it keeps must not be another model's."""
    for seed in range(3):
        params = {p: np.full(shape, seed, np.float32) for p, shape in SHAPES.items()}
        for name in PORTER.sources:
            assert (next(PORTER.to_torch(Arrays(params), name)) == seed).all()


def test_large_matrices_are_transposed_alike(monkeypatch):
    expected = {path: x.tobytes() for path, x in ours(source()).items()}
    monkeypatch.setattr(transposition, "SMALL", 0)
    assert {path: x.tobytes() for path, x in ours(source()).items()} == expected


def test_carried_tensors_pass_unchanged():
    assert PORTER.carries("old.buffer") and not PORTER.carries("scale")
    value = np.arange(3)
    (there,) = PORTER.to_ours(Arrays({"old.buffer": value}), EXTRAS + "old.buffer")
    (back,) = PORTER.to_torch(Arrays({EXTRAS + "old.buffer": value}), "old.buffer")
    assert there is value and back is value


def test_import_lists_every_problem_at_once():
    values = source(blocks_2_k_bias=BFLOAT16)
    del values["scale"], values["blocks.0.q.weight"], values["blocks.2.q.weight"]
    values["blocks.1.q.weight"] = values["blocks.3.q.weight"] = np.zeros(1)
    values["head.weight"] = values["head.weight"].T
    message = refusal(PORTER.check_import, Arrays(values), "FILE")
    assert message == (
        "FILE: missing blocks.{0,2}.q.weight; missing scale; unknown blocks.{1,3}.q.weight; "
        "head.weight has shape (4, 7), expected (7, 4); "
        "blocks.{0,2}.k.bias, blocks.{0,2}.q.bias must have one dtype, not bfloat16, float32"
    )
    PORTER.check_import(Arrays(source() | {"old.buffer": np.zeros(2)}), "FILE")


def test_export_lists_every_problem_at_once():
    params = ours(source())
    params["new/kernel"] = params["new/kernel"].astype(ml_dtypes.bfloat16)
    params["blocks/qk/bias"] = params["blocks/qk/bias"][:, :4]
    params["extra/0/kernel"] = params.pop("scale")
    params[EXTRAS + "old.buffer"] = np.zeros(2)
    message = refusal(PORTER.check_export, Arrays(params), "PART")
    assert message == (
        "PART: missing scale; unknown extra/0/kernel; "
        "blocks/qk/bias has shape (2, 4), expected (2, 5); "
        "head/kernel, new/kernel must have one dtype, not bfloat16, float32"
    )


def test_part_of_a_whole_model_may_mix_and_leave_over():
    """New float32 words beside an old bfloat16 vocabulary: float32 holds both exactly."""
    params = ours(source(head_weight=BFLOAT16)) | {"other": np.zeros(3)}
    params["head/kernel"] = np.arange(24).reshape(4, 6).astype(BFLOAT16)
    params["new/kernel"] = np.full((4, 1), 0.1, np.float32)
    PORTER.check_export(Arrays(params), "MODEL", whole=True)
    assert PORTER.torch_dtype(Arrays(params), "head.weight") == FLOAT32
    assert PORTER.torch_dtype(Arrays(params), "scale") == FLOAT32
    (joined,) = PORTER.to_torch(Arrays(params), "head.weight")
    expected = [*params["head/kernel"].astype(np.float32).T, params["new/kernel"].T[0]]
    np.testing.assert_array_equal(joined, np.stack(expected))
    assert joined.dtype == np.float32


WRONG = {
    "two rules for a": [rule("x", "a"), rule("y", "a"), rule("z", "b")],
    "two rules for x": [rule("x", "a"), rule("x", "b")],
    "differ: b": [rule("x", "a")],
    "differ: c": [rule("x", "a"), rule("y", "b"), rule("z", "c")],
}


@pytest.mark.parametrize("message", WRONG)
def test_tables_that_name_a_parameter_twice_or_not_at_all_are_refused(message):
    with pytest.raises(ValueError, match=message):
        Porter(Table(tuple(WRONG[message])), {"a": (), "b": ()})


def test_names_that_differ_in_a_number_are_grouped():
    names = ["a.0.b", "a.1.b", "a.2.b", "a.5.b", "a.1.c", "alone", "x/3/y", "h2.w", "a.1.b.7.c"]
    assert grouped(names) == ["a.1.b.7.c", "a.1.c", "a.{0-2,5}.b", "alone", "h2.w", "x/3/y"]
    assert grouped([]) == []
