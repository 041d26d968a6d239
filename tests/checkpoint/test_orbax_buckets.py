"""What is replaced in Orbax is still where it was, and does what it must."""

import inspect

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from rb_jax import storage
from rb_jax.checkpoint import orbax_buckets


def test_orbax_asks_these_functions_for_a_bucket():
    source = inspect.getsource(tensorstore_utils._build_ocdbt_kvstore_tspec)
    for call in ("_use_gcs_driver(", "_normalize_path(", "gcs_utils.get_kvstore_for_gcs("):
        assert call in source, call


def test_drivers_of_disks_and_both_buckets(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("TENSORSTORE_GCS_BACKEND", raising=False)
    orbax_buckets.enable()
    orbax_buckets.enable()
    for path, driver in {
        "gs://bucket/run/": "gcs",
        "s3://bucket/run/": "s3",
        "/disk/run/": "file",
    }.items():
        spec = tensorstore_utils.build_kvstore_tspec(path)
        assert (spec["driver"], spec["base"]["driver"]) == ("ocdbt", driver)
        key = spec["base"]["path"]
        assert key.strip("/") == ("disk/run" if driver == "file" else "run")
        if driver != "file":  # else a run whose store is gone would hang
            assert spec["base"][f"{driver}_request_retries"] == storage.RETRIES
    assert gcs_utils.get_kvstore_for_gcs("gs://bucket/run")["bucket"] == "bucket"
