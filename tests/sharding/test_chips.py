import pytest

from rb_jax.sharding.chips import CHIPS, chip_of, device_flops


@pytest.mark.parametrize(
    ("name", "gigahertz"),
    [("v4", 1.05), ("v5e", 1.50), ("v5p", 1.75), ("v6e", 1.75), ("tpu7x", 2.20)],
)
def test_clock_follows_from_the_peak(name, gigahertz):
    assert CHIPS[name].clock == pytest.approx(gigahertz * 1e9, rel=0.01)


def test_a_gpu_has_no_clock_here():
    with pytest.raises(ValueError, match="h100"):
        _ = CHIPS["h100"].clock


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
    ],
)
def test_kinds_of_devices(kind, name):
    assert chip_of(kind) is CHIPS[name]


def test_a_tpu7x_device_is_half_a_chip():
    assert device_flops("TPU7x") == CHIPS["tpu7x"].flops / 2
    assert device_flops("TPU v5") == CHIPS["v5p"].flops
    assert device_flops("cpu") is None
