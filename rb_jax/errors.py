"""The error that is the user's to fix, and how its one line is made."""

from __future__ import annotations

import re
from collections.abc import Sequence


class InputError(ValueError):
    """Bad input: a file, a folder, an instruction or a setting that cannot be used.

    The message is one line that says what is wrong and what to do about it; the command line
    prints it and exits with status 2.
    """


def reason(error: BaseException) -> str:
    """Why something failed, in one line: the system's words, or the exception's first ones."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."


def listed(items: Sequence[object], separator: str = ", ", limit: int = 8) -> str:
    """The first few of them, and how many more there are."""
    shown = separator.join(map(str, items[:limit]))
    return shown + (f" and {len(items) - limit} more" if len(items) > limit else "")


def refuse_url(name: str, value: object, buckets: bool = False) -> None:
    """Raises InputError for a URL, which would become a local folder.

    With ``buckets`` gs://BUCKET/FOLDER and s3://BUCKET/FOLDER may be named.
    """
    if isinstance(value, str) and value.startswith(("http://", "https://")):
        raise InputError(f"{name}={value}: nothing is downloaded; fetch it, and give its path")
    if buckets and isinstance(value, str) and value.startswith(("gs://", "s3://")):
        return
    near = re.match(r"(gs|s3):/", value.lower()) if isinstance(value, str) else None
    if near and buckets:
        raise InputError(f"{name}={value}: a bucket is written {near[1]}://BUCKET/FOLDER")
    if isinstance(value, str) and "://" in value:
        raise InputError(
            f"{name}={value}: must be a path; mount the bucket, or use a file system that all "
            "machines share (tpu/README.md, Buckets)"
        )
