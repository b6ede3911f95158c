"""Bad input and trouble: what the user gets is a typed error that names the object, the reason and the next step."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from dcp_cloud import (
    CloudLoadPlanner,
    CloudStorageReader,
    CloudStorageWriter,
    S3StorageWriter,
    StoreURI,
    errors,
    open_store,
)
from dcp_cloud.format.layout import from_storage_info
from tests.checkpoint.test_round_trip import load, save

Place = Callable[..., str]
STATE = {"layer.weight": torch.arange(600_000.0), "layer.bias": torch.ones(3), "step": 7}


def blank() -> dict[str, Any]:
    return {"layer.weight": torch.zeros(600_000), "layer.bias": torch.zeros(3), "step": 0}


def load_error(uri: str | StoreURI, state: dict[str, Any] | None = None, **options: Any) -> BaseException:
    """Load, and give the error that a user finds in torch's CheckpointException, after pickling."""
    with pytest.raises(CheckpointException) as caught:
        dcp.load(state or blank(), storage_reader=CloudStorageReader(uri), **options)
    error = next(iter(caught.value.failures.values()))[0]
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    return error


def data_object(uri: str) -> str:
    return next(meta.key for meta in open_store(uri).list() if meta.key.endswith(".distcp"))


def rewrite(uri: str, key: str, change: Callable[[bytes], bytes]) -> None:
    store = open_store(uri)
    data = store.get(key, max_bytes=2**30).data
    store.put(key, [memoryview(change(data))])


@pytest.mark.parametrize(
    ("uri", "expected", "says"),
    [
        ("ftp://host/dir", errors.InvalidURIError, "s3://"),
        ("s3://", errors.InvalidURIError, "bucket"),
        ("bucket/prefix", errors.InvalidURIError, "s3://bucket/prefix"),
        (Path("s3://bucket/prefix"), errors.InvalidURIError, "slash"),
        ("s3://bucket/p?part_sise=5MiB", errors.UnknownOptionError, "part_size"),
        ("s3://bucket/p?part_size=many", errors.ConfigError, "64MiB"),
        ("s3://bucket/p?max_concurrency=0", errors.ConfigError, "1 to 1024"),
        ("s3://key:secret@bucket/p", errors.InvalidURIError, "credentials"),
        ("s3://bucket/p?aws_secret_access_key=x", errors.InvalidURIError, "secret"),
    ],
)
def test_a_wrong_uri_is_refused_where_it_is_written(uri: Any, expected: type[Exception], says: str) -> None:
    """The constructor, not the background save, says what is wrong with a URI."""
    for make in (CloudStorageWriter, CloudStorageReader):
        with pytest.raises(expected, match="(?i)" + says) as caught:
            make(uri)
        assert "secret@" not in str(caught.value)


def test_a_provider_class_refuses_other_providers() -> None:
    """S3StorageWriter takes s3:// only."""
    with pytest.raises(errors.ConfigError, match="s3://"):
        S3StorageWriter("memory://name/run")


@pytest.mark.parametrize("place", ["memory", "ceph", "moto"], indirect=True)
def test_nothing_there(place: Place) -> None:
    """A place without a checkpoint is CheckpointNotFoundError."""
    assert type(load_error(place())) is errors.CheckpointNotFoundError


@pytest.mark.parametrize("place", ["memory", "ceph"], indirect=True)
def test_the_parent_of_checkpoints_names_them(place: Place) -> None:
    """Loading the directory above the checkpoints says which ones there are."""
    uri = place("run/step-10")
    save(STATE, uri)
    error = load_error(uri.replace("/step-10", ""))
    assert type(error) is errors.CheckpointNotFoundError
    assert "step-10" in str(error)


@pytest.mark.parametrize("place", ["memory", "file", "ceph"], indirect=True)
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.safetensors", "CloudHuggingFaceStorageReader"),
        ("model-00001-of-00002.safetensors", "dcp-cloud convert"),
        ("model.pt", "CloudTorchSaveReader"),
        ("pytorch_model.bin", "dcp-cloud convert"),
        ("checkpoint_0.pt", "CloudCheckpointReader"),
    ],
)
def test_a_checkpoint_of_another_layout(place: Place, name: str, says: str) -> None:
    """What other programs stored is named, with what reads it; the same for the URI of the file itself."""
    uri = place()
    store = open_store(uri)
    store.put("config.json", [memoryview(b"{}")])
    assert says not in str(load_error(uri))
    store.put(name, [memoryview(b"not looked into")])
    for at in (uri, StoreURI.parse(uri).child(name)):
        error = load_error(at)
        assert type(error) is errors.CheckpointNotFoundError
        assert name in str(error)
        assert says in str(error)


@pytest.mark.parametrize("place", ["memory", "ceph"], indirect=True)
def test_an_unfinished_save(place: Place) -> None:
    """Data without a commit is IncompleteCheckpointError."""
    uri = place()
    save(STATE, uri)
    open_store(uri).delete([".metadata"])
    assert type(load_error(uri)) is errors.IncompleteCheckpointError


@pytest.mark.parametrize("place", ["memory", "ceph", "moto"], indirect=True)
def test_a_lost_object(place: Place) -> None:
    """A data object that is gone is IncompleteCheckpointError and named."""
    uri = place()
    save(STATE, uri)
    key = data_object(uri)
    open_store(uri).delete([key])
    error = load_error(uri)
    assert type(error) is errors.IncompleteCheckpointError
    assert key in str(error)


@pytest.mark.parametrize("place", ["memory", "file", "ceph", "moto"], indirect=True)
@pytest.mark.parametrize("kept", [0, 1000, 2_000_000])
def test_a_truncated_object(place: Place, kept: int) -> None:
    """A shortened data object is CorruptCheckpointError and named."""
    uri = place()
    save(STATE, uri)
    key = data_object(uri)
    rewrite(uri, key, lambda data: data[:kept])
    error = load_error(uri)
    assert type(error) is errors.CorruptCheckpointError
    assert key in str(error)


@pytest.mark.parametrize("place", ["memory", "ceph"], indirect=True)
@pytest.mark.parametrize("fqn", ["layer.weight", "layer.bias", "step"])
def test_a_flipped_byte(place: Place, fqn: str) -> None:
    """One flipped bit in any item is CorruptCheckpointError and names the item and the object."""
    uri = place()
    save(STATE, uri)
    infos = CloudStorageReader(uri).read_metadata().storage_data
    info = next(info for index, info in infos.items() if index.fqn == fqn)
    raw = from_storage_info(info).raw  # the tensor's own bytes
    middle = info.offset + 3 if raw is None else raw.offset + raw.size_bytes // 2

    def flip(data: bytes) -> bytes:
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]

    rewrite(uri, info.relative_path, flip)
    error = load_error(uri)
    assert type(error) is errors.CorruptCheckpointError
    assert fqn in str(error)
    assert info.relative_path in str(error)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-100], lambda data: b"\0" + data[1:]])
def test_a_damaged_commit(place: Place, damage: Callable[[bytes], bytes]) -> None:
    """A damaged .metadata is CorruptCheckpointError."""
    uri = place()
    save(STATE, uri)
    rewrite(uri, ".metadata", damage)
    error = load_error(uri)
    assert type(error) is errors.CorruptCheckpointError
    assert ".metadata" in str(error)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_hostile_commit_runs_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """A .metadata that names other classes is UnsafeCheckpointError, and nothing of it runs."""
    uri = place()
    save(STATE, uri)
    metadata = CloudStorageReader(uri).read_metadata()
    metadata.planner_data = {"x": _Evil()}
    open_store(uri).put(".metadata", [memoryview(pickle.dumps(metadata))])
    error = load_error(uri)
    assert type(error) is errors.UnsafeCheckpointError
    assert "print" in str(error)
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_record_that_leaves_the_prefix_is_refused(place: Place) -> None:
    """A commit cannot make the reader read objects outside of the checkpoint."""
    from dcp_cloud.format.metadata import dump_metadata

    uri = place()
    save(STATE, uri)
    for name in ("../other/__0_0.distcp", "/etc/passwd", "s3://elsewhere/x", "a//b"):
        metadata = CloudStorageReader(uri).read_metadata()
        for info in metadata.storage_data.values():
            info.relative_path = name
        open_store(uri).put(".metadata", [memoryview(dump_metadata(metadata))])
        assert type(load_error(uri)) is errors.CorruptCheckpointError


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_forged_length_does_not_exhaust_the_memory(place: Place) -> None:
    """An item that claims a terabyte is refused before anything is allocated for it."""
    from dcp_cloud.format.metadata import dump_metadata

    uri = place()
    save(STATE, uri)
    metadata = CloudStorageReader(uri).read_metadata()
    for info in metadata.storage_data.values():
        info.length = 2**40
    open_store(uri).put(".metadata", [memoryview(dump_metadata(metadata))])
    assert type(load_error(uri)) is errors.CorruptCheckpointError


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_state_dict_that_does_not_fit(place: Place) -> None:
    """CloudLoadPlanner lists every missing name, with the nearest one, and every other shape."""
    uri = place()
    save(STATE, uri)
    state = {"layer.weight": torch.zeros(5), "layer.baas": torch.zeros(3), "step": 0}
    error = load_error(uri, state, planner=CloudLoadPlanner())
    assert type(error) is errors.StateDictMismatchError
    for word in ("layer.baas", "layer.bias", "[600000]", "[5]"):
        assert word in str(error)
    loaded = blank()
    dcp.load(loaded, storage_reader=CloudStorageReader(uri), planner=CloudLoadPlanner())
    assert loaded["step"] == 7


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_result_that_is_missing_is_not_committed(place: Place) -> None:
    """finish refuses to commit a plan of which an item has no result, and deletes the data."""

    class Forgetful(CloudStorageWriter):
        def finish(self, metadata: Any, results: Any) -> None:
            super().finish(metadata, [results[0][1:]])

    uri = place()
    with pytest.raises(CheckpointException) as caught:
        dcp.save(STATE, storage_writer=Forgetful(uri))
    assert isinstance(next(iter(caught.value.failures.values()))[0], errors.IncompleteCheckpointError)
    assert not list(open_store(uri).list())


def test_missing_bucket(place: Place) -> None:
    """A bucket that does not exist is BucketNotFoundError on save and on load, before any data is sent."""
    uri = place()
    missing = "s3://no-such-bucket-anywhere/run" + uri[uri.index("?") :]
    with pytest.raises(CheckpointException) as caught:
        save(STATE, missing)
    assert isinstance(next(iter(caught.value.failures.values()))[0], errors.BucketNotFoundError)
    assert isinstance(load_error(missing), errors.BucketNotFoundError)


def test_wrong_credentials(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong and missing credentials are UnauthenticatedError, and no secret is in the text."""
    uri = place()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-value")
    error = load_error(uri)
    assert isinstance(error, errors.UnauthenticatedError)
    assert "wrong-secret-value" not in str(error)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert isinstance(load_error(uri), errors.UnauthenticatedError)


def test_nobody_listens() -> None:
    """A store that cannot be reached ends in RetriesExhaustedError within the bounds given."""
    uri = (
        "s3://bucket/run?endpoint_url=http://127.0.0.1:9&region=us-east-1&max_attempts=2&base_delay=1ms&anonymous=true"
    )
    assert isinstance(load_error(uri), errors.RetriesExhaustedError)


@pytest.mark.parametrize("place", ["memory", "ceph"], indirect=True)
def test_other_checkpoints_metadata(place: Place) -> None:
    """The metadata of one checkpoint put beside the data of another does not load wrong numbers."""
    first, second = place(), place()
    save(STATE, first)
    save({**STATE, "layer.weight": torch.zeros(600_000)}, second)
    data = open_store(first).get(".metadata", max_bytes=2**20).data
    open_store(second).put(".metadata", [memoryview(data)])
    assert isinstance(load_error(second), errors.IncompleteCheckpointError)
    key = data_object(first)
    stolen = open_store(second).get(data_object(second), max_bytes=2**30).data
    open_store(second).put(key, [memoryview(stolen)])
    assert isinstance(load_error(second), errors.CorruptCheckpointError)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_loading_whole_again_after_an_error(place: Place) -> None:
    """A reader that failed once works again when the reason is gone."""
    uri = place()
    reader = CloudStorageReader(uri)
    with pytest.raises(CheckpointException):
        dcp.load(blank(), storage_reader=reader)
    save(STATE, uri)
    loaded = blank()
    dcp.load(loaded, storage_reader=reader)
    assert loaded["step"] == 7
    load(loaded, uri)
