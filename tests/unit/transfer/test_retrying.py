from __future__ import annotations

from collections.abc import Iterator

import pytest

from dcp_cloud.errors import (
    AlreadyExistsError,
    NotFoundError,
    PreconditionError,
    RetriesExhaustedError,
    TransientError,
)
from dcp_cloud.stores.base import IfAbsent, IfMatch, ObjectMeta, ObjectStore
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.testing.wrappers import Fault, FaultyStore, RecordingStore
from dcp_cloud.transfer.events import RequestDone, TransferEvent
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore
from tests.unit.transfer.tools import AT_ONCE, content, keys, memory_store

NEW = memoryview(b"new content")


def retrying(store: ObjectStore, *faults: Fault, hook: list[TransferEvent] | None = None) -> RetryingStore:
    told: list[TransferEvent] = [] if hook is None else hook
    return RetryingStore(FaultyStore(store, faults), Retrier(config=AT_ONCE, hook=told.append))


def lost(verb: str, nth: int = 1) -> Fault:
    return Fault("fail", verb=verb, when="after", nth=nth)


@pytest.mark.parametrize("pieces", [[NEW], [NEW[:3], NEW[3:3], NEW[3:]]])
def test_a_create_whose_answer_was_lost_is_a_success(pieces: list[memoryview]) -> None:
    """The second try is refused because of the first: the object holds exactly our bytes."""
    store = memory_store()
    meta = retrying(store, lost("put")).put("k", pieces, condition=IfAbsent())
    assert meta == store.head("k")
    assert content(store, "k") == NEW


def test_a_replacement_whose_answer_was_lost_is_a_success() -> None:
    """The same for a write on the condition of a version."""
    store = memory_store()
    before = store.put("k", [memoryview(b"old")])
    meta = retrying(store, lost("put")).put("k", [NEW], condition=IfMatch(before.etag))
    assert meta == store.head("k")
    assert content(store, "k") == NEW


def test_the_look_at_what_was_written_is_repeated_too() -> None:
    """A failing look does not turn our own write into a conflict."""
    store = memory_store()
    faults = lost("put"), Fault("fail", verb="get")
    assert retrying(store, *faults).put("k", [NEW], condition=IfAbsent()) == store.head("k")


def test_a_look_that_never_succeeds_is_no_conflict() -> None:
    """When it cannot be known whether the write took effect, the error does not say that it did not."""
    store = memory_store()
    with pytest.raises(RetriesExhaustedError):
        retrying(store, lost("put"), Fault("fail", verb="get", times=None)).put("k", [NEW], condition=IfAbsent())


def test_an_empty_object_whose_answer_was_lost_is_a_success() -> None:
    """No bytes are exactly our bytes, too."""
    store = memory_store()
    assert retrying(store, lost("put")).put("k", [], condition=IfAbsent()) == store.head("k")


@pytest.mark.parametrize("other", [b"other bytes", b"new conten", b"new content!", b"new contenT", b""])
def test_a_real_conflict_after_a_failed_try_stays_one(other: bytes) -> None:
    """Somebody else's object is not ours, however like it is."""
    store = memory_store()
    store.put("k", [memoryview(other)])
    with pytest.raises(AlreadyExistsError):
        retrying(store, Fault("fail", verb="put")).put("k", [NEW], condition=IfAbsent())
    assert content(store, "k") == other


def test_a_conflict_at_the_first_try_is_one_even_with_our_bytes() -> None:
    """Before the first try nothing of ours can be there."""
    store = memory_store()
    store.put("k", [NEW])
    recording = RecordingStore(store)
    with pytest.raises(AlreadyExistsError):
        retrying(recording).put("k", [NEW], condition=IfAbsent())
    assert recording.count("get") == 0


def test_a_version_that_is_gone_stays_a_conflict() -> None:
    """A write on a version that somebody replaced or deleted fails, also after a failed try."""
    store = memory_store()
    before = store.put("k", [memoryview(b"old")])
    store.put("k", [memoryview(b"other job")])
    with pytest.raises(PreconditionError):
        retrying(store, Fault("fail", verb="put")).put("k", [NEW], condition=IfMatch(before.etag))
    store.delete(["k"])
    with pytest.raises(PreconditionError):
        retrying(store, Fault("fail", verb="put")).put("k", [NEW], condition=IfMatch(before.etag))


def test_a_conditional_delete_whose_answer_was_lost_is_a_success() -> None:
    """The second try finds nothing, which counts as deleted."""
    store = memory_store()
    before = store.put("k", [NEW])
    retrying(store, lost("delete")).delete(["k"], if_match=before.etag)
    assert keys(store) == set()


def test_a_conditional_delete_leaves_another_version() -> None:
    """What somebody wrote after the first try is not what was meant."""
    store = memory_store()
    before = store.put("k", [memoryview(b"old")])
    store.put("k", [NEW])
    with pytest.raises(PreconditionError):
        retrying(store, Fault("fail", verb="delete")).delete(["k"], if_match=before.etag)
    assert content(store, "k") == NEW


def uploaded(store: MemoryStore, *faults: Fault) -> None:
    upload = retrying(store, *faults).create_multipart("k")
    parts = [upload.put_part(index, [NEW]) for index in range(3)]
    assert upload.complete(parts) == store.head("k")
    assert content(store, "k") == bytes(NEW) * 3
    assert list(store.list_multiparts()) == []


@pytest.mark.parametrize(
    "faults",
    [
        (lost("complete"),),
        (lost("complete"), Fault("fail", verb="head")),
        (lost("complete"), Fault("fail", verb="complete", nth=2)),
        (lost("put_part", nth=2),),
        (Fault("fail", verb="create_multipart"),),
    ],
)
def test_an_upload_whose_answers_were_lost_is_a_success(faults: tuple[Fault, ...]) -> None:
    """A completion that no longer finds its upload looks for its object."""
    uploaded(memory_store(), *faults)


def test_a_completion_that_never_took_effect_stays_not_found() -> None:
    """An upload that somebody aborted is not taken for a completed one: neither without nor with another object."""
    store = memory_store()
    for other in (None, b"of another length"):
        if other is not None:
            store.put("k", [memoryview(other)])
        upload = retrying(store, Fault("fail", verb="complete")).create_multipart("k")
        parts = [upload.put_part(0, [NEW])]
        for open_upload in store.list_multiparts():
            open_upload.abort()
        with pytest.raises(NotFoundError):
            upload.complete(parts)


def test_an_unknown_upload_at_the_first_try_is_not_found() -> None:
    """Before the first try nothing of ours can be complete."""
    store = memory_store()
    store.put("k", [NEW])
    upload = retrying(store).create_multipart("k")
    parts = [upload.put_part(0, [NEW])]
    upload.abort()
    with pytest.raises(NotFoundError):
        upload.complete(parts)


class _BreakingList(RecordingStore):
    """Gives a listing that breaks off in its middle, the first time."""

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        breaks = self.count("list") == 0
        for place, meta in enumerate(super().list(prefix)):
            if breaks and place == 3:
                raise TransientError("the second page was lost")
            yield meta


def test_a_listing_that_breaks_off_is_taken_again_whole() -> None:
    """Nobody sees half a listing, or an object twice."""
    store = memory_store()
    for number in range(5):
        store.put(f"d/{number}", [])
    whole = RetryingStore(_BreakingList(store), Retrier(config=AT_ONCE))
    assert sorted(meta.key for meta in whole.list("d")) == [f"d/{number}" for number in range(5)]


def test_every_verb_is_forwarded_and_repeated() -> None:
    """Each verb survives a failure, asks the store for the same thing again, and tells of both tries."""
    store = memory_store()
    store.put("k", [NEW])
    told: list[TransferEvent] = []
    verbs = ("head", "get", "get_range", "put", "create_multipart", "put_part", "complete", "abort", "delete")
    verbs += ("list", "list_prefixes", "list_multiparts")
    tried = retrying(store, *(Fault("fail", verb=verb) for verb in verbs), hook=told)

    assert tried.uri == store.uri
    assert tried.limits == store.limits
    assert tried.head("k") == store.head("k")
    assert tried.get("k", max_bytes=3).data == b"new"
    room = bytearray(7)
    tried.get_range("k", 4, [memoryview(room)], if_match=store.head("k").etag)
    assert room == b"content"
    tried.put("d/other", [NEW])
    upload = tried.create_multipart("parts")
    assert upload.key == "parts"
    assert [found.started_at for found in tried.list_multiparts()] == [upload.started_at]
    upload.complete([upload.put_part(0, [NEW])])
    tried.create_multipart("dropped").abort()
    assert {meta.key for meta in tried.list()} == {"k", "d/other", "parts"}
    assert list(tried.list_prefixes()) == ["d"]
    tried.delete(["k", "parts"])
    assert keys(store) == {"d/other"}
    assert list(store.list_multiparts()) == []
    tried.close()

    requests = [event for event in told if isinstance(event, RequestDone)]
    assert {event.verb for event in requests if event.will_retry} == set(verbs)
    assert {event.verb for event in requests if event.error is None} == set(verbs)
    sizes = {event.verb: event.size_bytes for event in requests if event.error is None}
    assert (sizes["get_range"], sizes["put"], sizes["put_part"]) == (7, 11, 11)


def test_a_version_that_changed_is_not_read() -> None:
    """The condition of a read reaches the store."""
    store = memory_store()
    store.put("k", [NEW])
    with pytest.raises(PreconditionError):
        retrying(store).get_range("k", 0, [memoryview(bytearray(1))], if_match="another version")
