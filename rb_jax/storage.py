"""Folders on a disk or in a bucket: one kind of path for both, and what a bucket needs besides.

``gs://BUCKET/...`` needs the extra ``gcs``, ``s3://BUCKET/...`` the extra ``s3``. Credentials are
the clients' own affair: application default credentials or a service account for Google, the
environment, a profile or the machine's role for AWS.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import importlib.util
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

from rb_jax.errors import InputError, reason
from rb_jax.files import file_hash

if TYPE_CHECKING:
    import tensorstore

AnyPath = Path | epath.Path

# Scheme -> the package that reads it, and our extra that brings it.
CLIENTS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
# Bucket names as the services take them.
NAMES = {"gs": r"[a-z0-9][-._a-z0-9]{1,220}[a-z0-9]", "s3": r"[a-z0-9][-.a-z0-9]{1,61}[a-z0-9]"}
# How often tensorstore asks a store that fails: for a minute and a half. Its own 32 times take a
# quarter of an hour, in which a run whose store is gone would neither save nor end.
RETRIES = {"max_retries": 7, "initial_delay": "1s", "max_delay": "32s"}
QUIET = {"gcsfs": logging.CRITICAL, "google.auth": logging.ERROR}
LASTING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
THREADS = 16  # requests at a time
PIECE_BYTES = 2**24  # of a file that is copied, in memory at a time


def scheme(path: object) -> str:
    """What stands before "://", or "" for a path on a disk."""
    before, found, _ = str(path).partition("://")
    return before if found else ""


def place(path: str | os.PathLike[str], name: str = "") -> epath.Path:
    """A folder on a disk, made absolute, or in a bucket.

    Raises InputError, beginning with ``name``, for another scheme and for a missing client.
    """
    text = os.fspath(path)
    where = f"{name}={text}" if name else text
    kind = scheme(text)
    if not kind:
        return epath.Path(Path(text).resolve())
    if kind not in CLIENTS:
        raise InputError(f"{where}: must be a path, or begin with gs:// or s3://")
    bucket, _, key = text.removeprefix(f"{kind}://").partition("/")
    if not bucket:
        raise InputError(f"{where}: a bucket is missing; write {kind}://BUCKET/FOLDER")
    if not re.fullmatch(NAMES[kind], bucket):
        raise InputError(f"{where}: {bucket!r} cannot be the name of a bucket")
    if ".." in key.split("/"):
        raise InputError(f"{where}: '..' means nothing in a bucket")
    _prepare_client(kind, where)
    return epath.Path(f"{kind}://{bucket}/{'/'.join(part for part in key.split('/') if part)}")


@functools.cache
def _prepare_client(kind: str, where: str) -> None:
    module, extra = CLIENTS[kind]
    if importlib.util.find_spec(module) is None:
        raise InputError(f"{where}: needs {module}, the extra [{extra}]: pip install '.[{extra}]'")
    # One request a folder to learn the bucket's kind, and a warning each where it may not be asked.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # What a store that is gone means is said once, by us, not with a traceback for each request.
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)
    import fsspec.config

    for protocol in (kind, *(("gcs",) if kind == "gs" else ())):
        # Other processes, and tensorstore in this one, write behind the listing's back.
        settings: Any = fsspec.config.conf.setdefault(protocol, {})
        settings.setdefault("use_listings_cache", False)


def is_bucket(path: object) -> bool:
    """Whether a path is in a bucket rather than on a disk."""
    return bool(scheme(path))


class Unreachable(InputError):
    """A bucket does not answer, does not exist, or does not let us in."""


@contextlib.contextmanager
def beginning(folder: object) -> Iterator[None]:
    """Turns what is wrong with a folder for good into InputError: no later start would help."""
    try:
        yield
    except OSError as error:
        if error.errno in LASTING:
            raise InputError(f"{folder}: cannot be written ({reason(error)})") from error
        raise


@contextlib.contextmanager
def reaching(path: object) -> Iterator[None]:
    """Turns what goes wrong between here and a bucket into Unreachable, whichever client failed."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        clients = ("gcsfs", "google", "botocore", "aiobotocore", "aiohttp", "s3fs", "requests")
        known = type(error).__module__.split(".")[0] in clients
        if not is_bucket(path) or not (known or isinstance(error, OSError)):
            raise
        raise Unreachable(f"{path}: cannot be reached ({reason(error)})") from error


def check_bucket(folder: epath.Path) -> None:
    """Raises InputError when a folder's bucket does not exist or may not be written to.

    Unreachable when it does not answer. Asked of the clients that answer at once: tensorstore waits
    long for a bucket that is not there.
    """
    probe = folder / ".writable"
    with reaching(folder):
        try:
            probe.write_text("")
            probe.unlink()
        except FileNotFoundError as error:
            raise no_bucket(folder) from error
        except PermissionError as error:
            raise InputError(f"{folder}: may not be written to ({reason(error)})") from error


def no_bucket(folder: object) -> InputError:
    """That there is no bucket of a folder's name."""
    kind, _, rest = str(folder).partition("://")
    return InputError(f"{folder}: there is no bucket {kind}://{rest.partition('/')[0]}")


def check_there(folder: AnyPath) -> None:
    """Raises InputError when a folder is in a bucket that does not exist."""
    if is_bucket(folder):
        import fsspec

        system: Any = fsspec.filesystem(scheme(folder))
        with reaching(folder):
            bucket = str(folder).partition("://")[2].partition("/")[0]
            if not system.exists(bucket):
                raise no_bucket(folder)


def kvstore(folder: AnyPath) -> tensorstore.KvStore:
    """The keys below a folder, as tensorstore reads and writes them, also conditionally."""
    import tensorstore as ts

    return ts.KvStore.open(kvstore_spec(f"{os.fspath(folder)}/")).result()


def kvstore_spec(path: str) -> dict[str, Any]:
    """tensorstore's words for a path on a disk or in a bucket."""
    kind = scheme(path)
    if not kind:
        return {"driver": "file", "path": path}
    bucket, _, key = path.removeprefix(f"{kind}://").partition("/")
    if kind == "gs":
        driver = os.environ.get("TENSORSTORE_GCS_BACKEND", "gcs")
        retries = {"gcs_request_retries": RETRIES} if driver == "gcs" else {}
        return {"driver": driver, "bucket": bucket, "path": key} | retries
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": key}
    spec["s3_request_retries"] = RETRIES
    # boto's clients read these themselves, tensorstore does not.
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        spec |= {"endpoint": endpoint, "aws_region": region or "us-east-1"}
    if "AWS_ACCESS_KEY_ID" in os.environ:  # else it looks for files first, and complains
        spec["aws_credentials"] = {"type": "environment"}
    return spec


def files(folder: AnyPath) -> dict[str, int]:
    """Path relative to ``folder`` -> size in bytes, of every file below it; {} if it is absent."""
    if not is_bucket(folder):
        found = {}
        for parent, _, names in os.walk(folder, onerror=_unless_absent):
            for name in names:
                path = os.path.join(parent, name)
                found[os.path.relpath(path, folder)] = os.stat(path).st_size
        return found
    import fsspec

    system = fsspec.filesystem(scheme(folder))
    listed: Any = system.find(os.fspath(folder), detail=True)
    start = len(os.fspath(folder).removeprefix(f"{scheme(folder)}://")) + 1
    return {
        path[start:]: info["size"]
        for path, info in listed.items()
        if info["type"] == "file" and path[start:]
    }


def _unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def upload(source: Path, target: epath.Path, last: str = "") -> None:
    """Copies every file below a local folder; the one named ``last`` after all others.

    So whoever finds that one finds all of them. Raises Unreachable.
    """
    names = sorted(p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file())
    with reaching(target), ThreadPoolExecutor(THREADS) as pool:
        if last:
            (target / last).unlink(missing_ok=True)
        first = [name for name in names if name != last]
        list(pool.map(lambda name: copy_file(source / name, target / name), first))
        if last in names:
            copy_file(source / last, target / last)


def copy_file(source: Any, target: Any) -> None:
    """One file's bytes, between disks and buckets."""
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, PIECE_BYTES)


def fetched(folder: AnyPath) -> Path:
    """A copy of a bucket's folder on this machine, until the process ends; a local one itself.

    Raises Unreachable, and OSError when the disk is full.
    """
    if not is_bucket(folder):
        return Path(folder)
    return _fetched(os.fspath(folder))


@functools.cache
def _fetched(folder: str) -> Path:
    source = epath.Path(folder)
    local = Path(tempfile.mkdtemp(prefix="rb_jax-"))
    atexit.register(shutil.rmtree, local, ignore_errors=True)

    def fetch(name: str) -> None:
        target = local / name
        if not target.resolve().is_relative_to(local.resolve()):
            raise InputError(f"{folder}: the name {name!r} leads out of the folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_file(source / name, target)

    with reaching(folder), ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fetch, sorted(files(source))))
    return local


class Mirror:
    """A local folder whose files appear in a bucket's folder; of a local one, just that folder.

    For what is small and written a little at a time, which object stores cannot do. ``wanted``
    files are fetched at the start. ``sync`` copies what has changed since it was last called.
    """

    def __init__(self, target: epath.Path, wanted: tuple[str, ...] = ()):
        self.target = target
        self.folder = Path(target)
        self._copied: dict[str, tuple[int, str]] = {}
        self._lost = False  # the bucket did not answer: it is not asked again at the end
        if is_bucket(target):
            self.folder = Path(tempfile.mkdtemp(prefix="rb_jax-"))
            with reaching(target):
                for name in wanted:
                    if (target / name).exists():
                        copy_file(target / name, self.folder / name)

    def sync(self) -> None:
        """Raises Unreachable."""
        if not is_bucket(self.target):
            return
        self._lost = True
        with reaching(self.target):
            for path in sorted(self.folder.rglob("*")):
                if not path.is_file() or path.name.startswith("."):
                    continue
                name = path.relative_to(self.folder).as_posix()
                now = (path.stat().st_size, file_hash(path))
                if self._copied.get(name) != now:
                    copy_file(path, self.target / name)
                    self._copied[name] = now
        self._lost = False

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Copies the rest; the local copy of a bucket's folder goes.

        Raises Unreachable, unless the block ended with an error, which says more.
        """
        if is_bucket(self.target):
            try:
                if not self._lost:
                    self.sync()
            except Unreachable as unreachable:
                if error is None:
                    raise
                logging.getLogger("rb_jax").warning("%s", unreachable)
            finally:
                shutil.rmtree(self.folder, ignore_errors=True)
