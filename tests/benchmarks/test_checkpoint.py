"""What a save costs, in miniature."""

from benchmarks import checkpoint as benchmark
from rb_jax.checkpoint import manager
from rb_jax.checkpoint.fingerprints import Fingerprints


def test_a_further_save_writes_little_more_than_what_is_trained(tmp_path):
    found = benchmark.written(8, 3, tmp_path)
    assert found["first save, MB"] > 8 and found["further / trained state"] < 1.2


def test_saves_with_and_without_hashing_are_timed(tmp_path):
    found = benchmark.hashing(1, 3, 1, tmp_path)
    assert 0 <= found["hashing / save"] < 1
    assert manager.Fingerprints is Fingerprints
