"""Folders on a disk or in a bucket."""

import json

import pytest

from rb_jax import storage
from rb_jax.errors import InputError


@pytest.fixture(params=["disk", "gs", "s3"])
def folder(request, tmp_path):
    if request.param == "disk":
        return storage.place(tmp_path / "a b")
    return storage.place(f"{request.getfixturevalue('buckets')[request.param]}/{tmp_path.name}/a b")


def test_files_there_and_back(folder, tmp_path):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "one.bin").write_bytes(bytes(range(256)) * 3)
    (source / "last.json").write_text("{}")
    assert storage.files(folder) == {}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sub").mkdir(exist_ok=True)
    storage.upload(source, folder, last="last.json")
    assert storage.files(folder) == {"sub/one.bin": 768, "last.json": 2}
    local = storage.fetched(folder)
    assert (local / "sub" / "one.bin").read_bytes() == bytes(range(256)) * 3
    store = storage.kvstore(folder)
    assert store.read("last.json").result().value == b"{}"


def test_mirror_copies_what_has_changed(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log").write_text("before\n")
    with storage.Mirror(folder, ("log", "absent")) as mirror:
        assert (mirror.folder / "log").read_text() == "before\n"
        with (mirror.folder / "log").open("a") as file:
            file.write("after\n")
        (mirror.folder / ".partial").write_text("not yet")
        mirror.sync()
        assert (folder / "log").read_text() == "before\nafter\n"
        if storage.is_bucket(folder):
            assert not (folder / ".partial").exists()
            (folder / "log").unlink()
            mirror.sync()  # unchanged here, so not written again
            assert not (folder / "log").exists()
    assert mirror.folder.exists() == (not storage.is_bucket(folder))


def test_a_bucket_that_is_gone_does_not_hide_why_a_run_ended(buckets, monkeypatch, caplog):
    root = storage.place("gs://nobody-has-this/run")
    with pytest.raises(RuntimeError, match="not finite"), storage.Mirror(root) as mirror:
        (mirror.folder / "log").write_text("x")
        raise RuntimeError("not finite")
    assert "cannot be reached" in caplog.text
    with pytest.raises(storage.Unreachable), storage.Mirror(root) as mirror:
        (mirror.folder / "log").write_text("x")
    assert not mirror.folder.exists()


def test_names_that_lead_out_of_a_fetched_folder_are_refused(buckets, tmp_path, monkeypatch):
    """Real stores keep any name; these servers do not, so the listing is made up."""
    root = storage.place(f"{buckets['s3']}/{tmp_path.name}")
    (root / "good").write_text("x")
    monkeypatch.setattr(storage, "files", lambda folder: {"good": 1, "../evil": 1})
    with pytest.raises(InputError, match="leads out of the folder"):
        storage.fetched(root)


def test_a_bucket_that_is_not_there_is_one_line(buckets, monkeypatch):
    for kind in ("gs", "s3"):
        root = storage.place(f"{kind}://nobody-has-this/run")
        refused = pytest.raises(storage.Unreachable, match=f"{root}: cannot be reached")
        with refused, storage.reaching(root):
            (root / "x").write_text("x")


@pytest.mark.parametrize("kind", ["gs", "s3"])
def test_a_bucket_that_does_not_exist_is_bad_input(buckets, kind):
    root = storage.place(f"{kind}://nobody-has-this/run")
    for check in (storage.check_bucket, storage.check_there):
        with pytest.raises(InputError, match=f"{root}: .*{kind}://nobody-has-this") as refused:
            check(root)
        assert type(refused.value) is InputError, "no reason to start again"
    storage.check_there(storage.place(f"{buckets[kind]}/not/there/yet"))


@pytest.mark.parametrize("bucket", ["Bad_Bucket!", "a", "-abc", "abc-", "x" * 300])
def test_names_that_no_bucket_has_are_refused_without_asking(bucket):
    with pytest.raises(InputError, match="cannot be the name of a bucket"):
        storage.place(f"gs://{bucket}/run", "workdir")


def test_the_extra_is_named_when_the_client_is_missing(monkeypatch):
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
    storage._prepare_client.cache_clear()
    with pytest.raises(InputError, match=r"workdir=gs://abc/x: needs gcsfs, .*'\.\[gcs\]'"):
        storage.place("gs://abc/x", "workdir")
    with pytest.raises(InputError, match=r"s3://abc/x: needs s3fs, .*'\.\[s3\]'"):
        storage.place("s3://abc/x")


def test_tensorstore_is_told_what_boto_reads_itself(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    spec = storage.kvstore_spec("s3://bucket/a/b")
    assert json.loads(json.dumps(spec)) == {
        "driver": "s3",
        "bucket": "bucket",
        "path": "a/b",
        "s3_request_retries": storage.RETRIES,
        "endpoint": "http://localhost:1",
        "aws_region": "eu-west-3",
        "aws_credentials": {"type": "environment"},
    }
