"""What only files can do wrong: symbolic links, directories, leftovers, and the system's errors."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dcp_cloud.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    StoreError,
    TransientError,
)
from dcp_cloud.stores.base import IfAbsent, IfMatch
from dcp_cloud.stores.local import LocalStore
from dcp_cloud.stores.local_files import translated, write_fully


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(str(tmp_path / "root"))


def _files(store: LocalStore) -> list[str]:
    return sorted(os.path.join(top, name) for top, _, names in os.walk(store.root) for name in names)


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a//b", "./a", "a/.", "", "a/", "a\0b"])
def test_keys_that_are_no_names_are_refused(store: LocalStore, key: str):
    """Nothing outside the root can be named, and no name has two spellings."""
    for call in (lambda: store.head(key), lambda: store.put(key, []), lambda: store.create_multipart(key)):
        with pytest.raises(InvalidRequestError):
            call()
    with pytest.raises(InvalidRequestError):
        store.delete([key])


@pytest.mark.parametrize("link", ["directory", "file"])
def test_symbolic_links_lead_nowhere_else(store: LocalStore, tmp_path, link: str):
    """A link out of the root is neither read nor written nor deleted through, and not listed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    os.mkdir(store.root)
    if link == "directory":
        os.symlink(outside, os.path.join(store.root, "d"))
    else:
        os.mkdir(os.path.join(store.root, "d"))
        os.symlink(outside / "secret", os.path.join(store.root, "d", "secret"))
    for call in (
        lambda: store.get("d/secret", max_bytes=10),
        lambda: store.get_range("d/secret", 0, [memoryview(bytearray(1))]),
        lambda: store.put("d/secret", [memoryview(b"x")]),
        lambda: store.create_multipart("d/secret"),
        lambda: store.delete(["d/secret"]),
    ):
        with pytest.raises(InvalidRequestError, match="symbolic link"):
            call()
    assert list(store.list()) == []
    assert (outside / "secret").read_bytes() == b"secret"


def test_the_root_may_be_a_link(tmp_path):
    """Where the root itself leads is the user's choice."""
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "root")
    store = LocalStore(str(tmp_path / "root"))
    store.put("a/b", [memoryview(b"1")])
    assert [meta.key for meta in store.list()] == ["a/b"]
    assert (tmp_path / "real/a/b").read_bytes() == b"1"


def test_the_stores_own_names_are_refused(store: LocalStore):
    """Hidden files of the store are no objects."""
    with pytest.raises(InvalidRequestError):
        store.put("a/.dcp-cloud-x", [])


def test_no_leftovers(store: LocalStore):
    """After puts, refused puts, completed and aborted uploads only the objects are there."""
    meta = store.put("a/b", [memoryview(b"1")])
    store.put("a/b", [memoryview(b"2")], condition=IfMatch(meta.etag))
    with pytest.raises(PreconditionError):
        store.put("a/b", [memoryview(b"3")], condition=IfMatch(meta.etag))
    upload = store.create_multipart("a/c")
    upload.complete([upload.put_part(index, [memoryview(b"123")]) for index in range(2)])
    aborted = store.create_multipart("a/d")
    aborted.put_part(0, [memoryview(b"1")])
    aborted.abort()
    assert _files(store) == [f"{store.root}/a/b", f"{store.root}/a/c"]
    assert sorted(os.listdir(f"{store.root}/a")) == ["b", "c"]


def test_a_failed_write_leaves_the_object(store: LocalStore, monkeypatch: pytest.MonkeyPatch):
    """A full disk costs the new version, not the old one, and leaves no half file."""
    store.put("a", [memoryview(b"old")])

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dcp_cloud.stores.local.write_fully", full)
    with pytest.raises(InvalidRequestError, match=r"[Ff]ree space"):
        store.put("a", [memoryview(b"new")])
    assert store.get("a", max_bytes=10).data == b"old"
    assert _files(store) == [f"{store.root}/a"]


def test_empty_directories_go_with_their_last_object(store: LocalStore):
    """Deleting leaves no tree of empty directories, and never removes the root."""
    store.put("a/b/c/d", [])
    store.put("a/x", [])
    store.delete(["a/b/c/d"])
    assert os.listdir(f"{store.root}/a") == ["x"]
    store.delete(["a/x"])
    assert os.listdir(store.root) == []


@pytest.mark.parametrize("key", ["a", "a/b/c"])
def test_an_object_and_a_directory_cannot_share_a_name(store: LocalStore, key: str):
    """A file system cannot hold ``a`` beside ``a/b``; the error says so, and what is there stays."""
    store.put("a/b", [memoryview(b"1")])
    with pytest.raises(InvalidRequestError):
        store.put(key, [])
    upload_refused = False
    try:
        upload = store.create_multipart(key)
        upload.complete([upload.put_part(0, [memoryview(b"1")])])
    except StoreError:
        upload_refused = True
    assert upload_refused
    assert store.get("a/b", max_bytes=9).data == b"1"
    with pytest.raises(NotFoundError):
        store.head(key)


@pytest.mark.parametrize("below", ["", "/run/step-1"])
@pytest.mark.parametrize("how", ["put", "create_multipart"])
def test_a_place_that_is_a_file_is_called_so(tmp_path, below: str, how: str):
    """Where a file stands in the way of the directory, the error names place, file and next step."""
    (tmp_path / "file").write_text("mine")
    store = LocalStore(f"{tmp_path}/file{below}")
    with pytest.raises(InvalidRequestError, match=r"(?i)cannot be made.*a part of this path is a file") as caught:
        store.put("k", []) if how == "put" else store.create_multipart("k")
    assert caught.value.key == f"file://{tmp_path}/file{below}"
    assert caught.value.cause is not None
    assert caught.value.cause.startswith(f"{tmp_path}/file: ")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a Linux file system that takes no directories")
def test_a_directory_that_cannot_be_made_is_told_with_the_systems_word():
    """The reason is what the system said, not a guess."""
    with pytest.raises(InvalidRequestError, match="No such file or directory") as caught:
        LocalStore("/proc/here/run").put("k", [])
    assert caught.value.key == "file:///proc/here/run"
    assert caught.value.hint is not None


@pytest.fixture(params=[errno.EPERM, errno.EOPNOTSUPP])
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse hard links, as FAT and many file systems in user space do."""

    def link(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.usefixtures("no_links")
def test_without_hard_links_one_of_many_creates(store: LocalStore):
    """Commits work without hard links too: of many, one succeeds, and nothing is left beside it."""
    barrier = threading.Barrier(8)

    def attempt(number: int) -> bool:
        barrier.wait()
        try:
            store.put("a/.metadata", [memoryview(b"%d" % number)], condition=IfAbsent())
        except AlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(8)))
    assert outcomes.count(True) == 1
    assert store.get("a/.metadata", max_bytes=9).data == b"%d" % outcomes.index(True)
    assert _files(store) == [f"{store.root}/a/.metadata"]


@pytest.mark.usefixtures("no_links")
def test_without_links_and_locks_nothing_is_created(store: LocalStore, monkeypatch: pytest.MonkeyPatch):
    """Where two jobs could not be told apart, a conditional write is refused with a way out."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(InvalidRequestError, match="neither link nor lock") as caught:
        store.put("k", [], condition=IfAbsent())
    assert caught.value.hint is not None
    assert _files(store) == []


def test_versions_written_within_a_tick_differ(store: LocalStore):
    """Replacing a file again and again never brings an old version token back."""
    tokens = [store.put("a", [memoryview(b"x")]).etag for _ in range(200)]
    assert len(set(tokens)) == len(tokens)


def test_thousands_of_buffers_are_one_object(store: LocalStore):
    """More buffers than the system takes in one call."""
    data = os.urandom(5000)
    store.put("a", [memoryview(data)[index : index + 1] for index in range(5000)])
    room = bytearray(5000)
    store.get_range("a", 0, [memoryview(room)[index : index + 1] for index in range(5000)])
    assert room == data


def test_partial_writes_are_continued(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """The system may write less than it was given."""
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: real(fd, [buffers[0][:3]], offset))
    with open(tmp_path / "f", "w+b") as file:
        write_fully(file.fileno(), [memoryview(b"0123456"), memoryview(b"78"), memoryview(b"9")], 2)
        assert file.read() == b"\0\0" + b"0123456789"


def test_an_upload_survives_a_crash_of_its_abort(store: LocalStore, monkeypatch: pytest.MonkeyPatch):
    """What an interrupted abort left is listed as an upload, so that a sweep finds and removes it."""
    upload = store.create_multipart("a/b")
    upload.put_part(0, [memoryview(b"1")])
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            upload.abort()
    [left] = store.list_multiparts()
    assert left.key == "a/b"
    left.abort()
    assert _files(store) == []


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOENT, NotFoundError),
        (errno.EACCES, PermissionDeniedError),
        (errno.EROFS, PermissionDeniedError),
        (errno.EIO, TransientError),
        (errno.ESTALE, TransientError),
        (errno.EMFILE, TransientError),
        (errno.ENOSPC, InvalidRequestError),
        (errno.ENAMETOOLONG, InvalidRequestError),
        (errno.EXDEV, InvalidRequestError),
    ],
)
def test_the_systems_errors_become_ours(number: int, expected: type[StoreError]):
    """Decided by number, and the key is named."""
    with pytest.raises(expected) as caught, translated("put", "k"):
        raise OSError(number, os.strerror(number))
    assert (caught.value.key, caught.value.cause) == ("k", os.strerror(number))


@pytest.mark.parametrize("number", range(20))
def test_of_a_replacement_and_a_deletion_of_one_version_one_wins(store: LocalStore, number: int):
    """Both hold the same lock: either the new version is there, or the deletion took the old one and it was refused."""
    old = store.put("a/b", [memoryview(b"old")]).etag
    barrier = threading.Barrier(2)

    def attempt(act) -> bool:
        barrier.wait()
        try:
            act()
        except PreconditionError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        new = [memoryview(b"new")]
        replaces = pool.submit(attempt, lambda: store.put("a/b", new, condition=IfMatch(old)))
        deletes = pool.submit(attempt, lambda: store.delete(["a/b"], if_match=old))
        outcomes = (replaces.result(), deletes.result())
    assert outcomes in ((True, False), (False, True))
    assert [meta.key for meta in store.list()] == (["a/b"] if outcomes[0] else [])
