"""The error that is the user's to fix."""


class InputError(ValueError):
    """Bad input: a file, a folder, an instruction or a setting that cannot be used.

    The message is one line that says what is wrong and what to do about it; the command line
    prints it and exits with status 2.
    """


def refuse_url(name: str, value: object) -> None:
    """Raises InputError for a path like ``gs://BUCKET/RUN``, which would become a local folder."""
    if isinstance(value, str) and value.startswith(("http://", "https://")):
        raise InputError(f"{name}={value}: nothing is downloaded; fetch it, and give its path")
    if isinstance(value, str) and "://" in value:
        raise InputError(
            f"{name}={value}: must be a path; mount the bucket, or use a file system that all "
            "machines share (tpu/README.md, Buckets)"
        )
