from __future__ import annotations

import pickle
import subprocess
import sys
import uuid

import pytest

from dcp_cloud.errors import ConfigError, PermissionDeniedError, ThrottledError, TransientError
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.testing.wrappers import Fault, FaultyStore, SimulatedCrash, Trouble, draw_faults

DATA = memoryview(b"0123456789")


def faulty(*faults: Fault, seed: int = 0) -> FaultyStore:
    return FaultyStore(MemoryStore(uuid.uuid4().hex), faults, seed=seed)


def outcomes(store: FaultyStore, keys: list[str]) -> list[bool]:
    """Put objects; tell for each whether it failed."""
    failed = []
    for key in keys:
        try:
            store.put(key, [DATA])
        except TransientError:
            failed.append(True)
        else:
            failed.append(False)
    return failed


def test_a_failure_before_the_effect_changes_nothing() -> None:
    """The request never reached the store."""
    store = faulty(Fault("fail", verb="put"))
    with pytest.raises(TransientError, match="on purpose"):
        store.put("k", [DATA])
    assert list(store.store.list()) == []


def test_a_failure_after_the_effect_loses_only_the_answer() -> None:
    """The request took effect and the caller cannot know it."""
    store = faulty(Fault("fail", verb="put", when="after"))
    with pytest.raises(TransientError):
        store.put("k", [DATA])
    assert [meta.key for meta in store.store.list()] == ["k"]


def test_faults_strike_the_nth_matching_request_as_often_as_said() -> None:
    """Counting is by fault: what does not match does not count."""
    store = faulty(Fault("fail", verb="put", key="a*", nth=2, times=2))
    assert outcomes(store, ["a1", "b", "a2", "b", "a3", "a4"]) == [False, False, True, False, True, False]
    assert [strike.key for strike in store.strikes] == ["a2", "a3"]


def test_times_none_goes_on_for_ever() -> None:
    """An outage has no end unless one is given."""
    assert outcomes(faulty(Fault("fail", nth=2, times=None)), ["k"] * 5) == [False, True, True, True, True]


def test_the_first_matching_fault_strikes() -> None:
    """Of several, the order in the list decides; the others go on counting."""
    store = faulty(Fault("throttle", retry_after_s=7), Fault("refuse", times=None))
    with pytest.raises(ThrottledError) as caught:
        store.head("k")
    assert caught.value.retry_after_s == 7
    with pytest.raises(PermissionDeniedError):
        store.head("k")


def test_verbs_of_uploads_match_too() -> None:
    """Parts, completions and aborts are requests like others."""
    store = faulty(Fault("fail", verb="complete", when="after"), Fault("fail", verb="abort"))
    upload = store.create_multipart("k")
    parts = [upload.put_part(0, [DATA])]
    with pytest.raises(TransientError):
        upload.complete(parts)
    assert [meta.key for meta in store.store.list()] == ["k"]
    with pytest.raises(TransientError):
        upload.abort()


def test_a_truncated_read_fills_half_and_fails() -> None:
    """What arrived before the connection broke is there; the rest is as it was."""
    store = faulty(Fault("truncate"))
    store.put("k", [DATA])
    room = bytearray(b"xxxxxx")
    with pytest.raises(TransientError):
        store.get_range("k", 1, [memoryview(room)[:2], memoryview(room)[2:]])
    assert room == b"123xxx"


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_is_exactly_one(seed: int) -> None:
    """The answer comes, with one bit wrong, and the object itself is unharmed."""
    store = faulty(Fault("flip_bit", times=None), seed=seed)
    store.put("k", [DATA])
    room = bytearray(10)
    store.get_range("k", 0, [memoryview(room)[:3], memoryview(room)[3:3], memoryview(room)[3:]])
    for answer in (room, store.get("k", max_bytes=99).data):
        assert sum((ours ^ theirs).bit_count() for ours, theirs in zip(answer, DATA, strict=True)) == 1
    assert store.store.get("k", max_bytes=99).data == DATA


def test_listings_can_be_short_or_stale() -> None:
    """A short listing lacks its second half; a stale one does not know what was written since the last."""
    store = faulty(Fault("short_list", nth=2), Fault("stale_list", nth=3))
    store.put("a", [DATA])
    store.put("b", [DATA])
    assert len(list(store.list())) == 2
    assert len(list(store.list())) == 1
    store.put("c", [DATA])
    assert len(list(store.list())) == 1
    assert len(list(store.list())) == 3
    unknown = faulty(Fault("stale_list"))
    unknown.put("a", [DATA])
    assert list(unknown.list()) == []


def test_after_a_crash_the_store_answers_nothing() -> None:
    """What a dying process does in its last handlers has no effect."""
    store = faulty(Fault("crash", verb="put", key="b", when="after"))
    store.put("a", [DATA])
    with pytest.raises(SimulatedCrash):
        store.put("b", [DATA])
    with pytest.raises(SimulatedCrash):
        store.delete(["a", "b"])
    assert {meta.key for meta in store.store.list()} == {"a", "b"}
    store.revive()
    store.delete(["a", "b"])
    assert list(store.store.list()) == []


@pytest.mark.parametrize(("kind", "code"), [("exit", 70), ("kill", -9)])
@pytest.mark.parametrize(("when", "files"), [("before", 0), ("after", 1)])
def test_the_process_can_end_at_a_request(kind: str, code: int, when: str, files: int, tmp_path) -> None:
    """The end comes at once, without handlers, before or after the effect."""
    script = f"""
from dcp_cloud import open_store
from dcp_cloud.testing.wrappers import Fault, FaultyStore
store = FaultyStore(open_store({str(tmp_path)!r}), [Fault({kind!r}, verb="put", when={when!r})])
try:
    store.put("k", [memoryview(b"x")])
finally:
    print("not reached")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert len(list(tmp_path.glob("k"))) == files


CHANCES = (Fault("fail", chance=0.3, times=None),)


def test_chance_follows_the_seed_and_not_the_order() -> None:
    """The same requests meet the same faults in whatever order threads make them; another seed decides otherwise."""
    keys = [f"k{number}" for number in range(100)]
    first = dict(zip(keys, outcomes(faulty(*CHANCES, seed=1), keys), strict=True))
    again = dict(zip(keys[::-1], outcomes(faulty(*CHANCES, seed=1), keys[::-1]), strict=True))
    other = dict(zip(keys, outcomes(faulty(*CHANCES, seed=2), keys), strict=True))
    assert first == again != other
    assert 10 <= sum(first.values()) <= 50


def test_the_same_request_again_is_decided_anew() -> None:
    """A retry has its own chance: no request fails for ever because its name is unlucky."""
    assert 10 <= sum(outcomes(faulty(*CHANCES), ["k"] * 100)) <= 50


def test_ids_in_keys_do_not_change_what_a_seed_decides() -> None:
    """Data objects are named after their save, by chance; the same job meets the same faults all the same."""
    first = [f"run/__0_{number}.{uuid.uuid4().hex}.distcp" for number in range(50)]
    second = [f"run/__0_{number}.{uuid.uuid4().hex}.distcp" for number in range(50)]
    assert outcomes(faulty(*CHANCES), first) == outcomes(faulty(*CHANCES), second)


def test_chance_zero_never_and_one_always_strikes() -> None:
    """The ends of the scale mean what they say."""
    assert not any(outcomes(faulty(Fault("fail", chance=0.0, times=None)), ["k"] * 50))
    assert all(outcomes(faulty(Fault("fail", chance=1.0, times=None)), ["k"] * 50))


def test_a_pickled_copy_counts_anew() -> None:
    """A fault that strikes the first request strikes the first one of each process."""
    store = faulty(Fault("fail"), seed=3)
    assert outcomes(store, ["k", "k"]) == [True, False]
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.faults, copy.seed, copy.strikes) == (store.faults, 3, ())
    assert outcomes(copy, ["k", "k"]) == [True, False]


@pytest.mark.parametrize("kind", ["truncate", "flip_bit", "short_list", "stale_list"])
def test_what_changes_the_answer_has_no_after(kind: str) -> None:
    """``when`` is for faults that end a request."""
    with pytest.raises(ConfigError, match="changes the answer"):
        Fault(kind, when="after")  # type: ignore[arg-type]


def test_faults_on_answers_match_only_requests_that_have_them() -> None:
    """A bit cannot flip in a deletion."""
    store = faulty(Fault("flip_bit"), Fault("truncate"), Fault("short_list"), Fault("stale_list"))
    store.put("k", [DATA])
    store.head("k")
    store.delete(["k"])
    assert store.strikes == ()


@pytest.mark.parametrize(("kind", "length"), [("rot", 10), ("cut", 5)])
def test_damage_at_rest_stays(kind: str, length: int) -> None:
    """The write succeeds, and from then on the object is another one; the answer knows its version."""
    store = faulty(Fault(kind, nth=2))  # type: ignore[arg-type]
    store.put("whole", [DATA])
    upload = store.create_multipart("k")
    meta = upload.complete([upload.put_part(0, [DATA])])
    assert store.get("whole", max_bytes=99).data == DATA
    found = store.get("k", max_bytes=99)
    assert (len(found.data), found.meta.etag, found.meta.size_bytes) == (length, meta.etag, length)
    assert found.data != DATA


def test_a_delay_only_waits() -> None:
    """A delayed request is made; one that is lost besides waits first and fails then."""
    store = faulty(Fault("delay", delay_s=0.001), Fault("fail", nth=3, delay_s=0.001))
    store.put("a", [DATA])
    store.put("b", [DATA])
    with pytest.raises(TransientError):
        store.put("c", [DATA])
    assert [strike.fault.kind for strike in store.strikes] == ["delay", "fail"]


def test_one_seed_draws_all_faults() -> None:
    """The same seed gives the same faults, other seeds others; each group gives what it says; one line tells all."""
    groups: list[Trouble] = ["passing", "lasting", "flips", "rot", "listings", "end"]
    assert draw_faults(5, groups) == draw_faults(5, groups) != draw_faults(6, groups)
    assert [fault.kind for fault in draw_faults(1, ["end"], end="kill")] == ["kill"]
    assert {fault.kind for seed in range(40) for fault in draw_faults(seed, ["rot"])} == {"rot", "cut"}
    assert draw_faults(1, []) == ()
    line = repr(faulty(*draw_faults(5, groups), seed=5))
    assert "seed=5" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (Fault("fail", verb="put_part", nth=3), "fail put_part #3"),
        (
            Fault("fail", verb="put", key="*.metadata", when="after", times=None, chance=0.5),
            "fail after put *.metadata x∞ p=0.5",
        ),
        (Fault("delay", delay_s=0.25, times=2), "delay * #1 x2 0.25s"),
    ],
)
def test_a_fault_says_in_a_line_what_it_does(fault: Fault, line: str) -> None:
    """A failing run can be told in one line."""
    assert str(fault) == line
