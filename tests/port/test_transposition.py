import ml_dtypes
import numpy as np
import pytest

from rb_jax.port import transposition
from rb_jax.port.transposition import transpose_last

X = np.arange(6.0)


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (0, 5), (256, 128), (257, 127), (700, 300), (3, 999)])
def test_transposition(monkeypatch, dtype, shape):
    monkeypatch.setattr(transposition, "SMALL", 0)
    x = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    for given in (x, x[::-1], x.T, np.repeat(x, 2, 1)[:, ::2]):
        turned = transpose_last(given)
        assert turned.flags.c_contiguous and turned.dtype == given.dtype
        np.testing.assert_array_equal(turned, given.T)


def test_transposition_of_other_shapes():
    np.testing.assert_array_equal(transpose_last(X.reshape(2, 3)), X.reshape(2, 3).T)
    with pytest.raises(ValueError, match="expected a matrix"):
        transpose_last(X)
