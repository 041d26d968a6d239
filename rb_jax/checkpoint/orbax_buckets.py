"""What Orbax cannot do in buckets by itself.

It takes any path that is not ``gs://`` for one on a disk, although epath and tensorstore, which do
its work, both know ``s3://``. It lets tensorstore ask a store that is gone for a quarter of an
hour. And it asks Google for the kind of a bucket, which fewer may ask than may read and write its
objects. tests/checkpoint/test_orbax_buckets.py fails when a new Orbax has moved what is replaced
here.
"""

from __future__ import annotations

import functools

from rb_jax.storage import kvstore_spec


@functools.cache
def enable() -> None:
    """Teaches this process's Orbax; once is enough."""
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    has_folders = gcs_utils.is_hierarchical_namespace_enabled

    def has_folders_if_told(path) -> bool:
        try:
            return bool(has_folders(path))
        except Exception:  # Forbidden: then empty folders may stay behind, and that is all
            return False

    gcs_utils.is_hierarchical_namespace_enabled = has_folders_if_told
    normalize = tensorstore_utils._normalize_path
    tensorstore_utils._use_gcs_driver = lambda path: path.startswith(("gs://", "s3://"))
    tensorstore_utils._normalize_path = lambda path: (
        path.rstrip("/") if path.startswith("s3://") else normalize(path)
    )
    gcs_utils.get_kvstore_for_gcs = kvstore_spec
