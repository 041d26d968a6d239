"""Lets Orbax write arrays to ``s3://``, which its own choice of tensorstore's driver leaves out.

Orbax takes any path that is not ``gs://`` for one on a disk, although epath and tensorstore, which
do its work, both know S3. tests/checkpoint/test_orbax_s3.py fails when a new Orbax has moved what
is replaced here.
"""

from __future__ import annotations

import functools

from rb_jax.storage import kvstore_spec


@functools.cache
def enable() -> None:
    """Teaches this process's Orbax; once is enough."""
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    normalize, of_bucket = tensorstore_utils._normalize_path, gcs_utils.get_kvstore_for_gcs

    def spec(path: str):
        return kvstore_spec(path) if path.startswith("s3://") else of_bucket(path)

    tensorstore_utils._use_gcs_driver = lambda path: path.startswith(("gs://", "s3://"))
    tensorstore_utils._normalize_path = lambda path: (
        path.rstrip("/") if path.startswith("s3://") else normalize(path)
    )
    gcs_utils.get_kvstore_for_gcs = spec
