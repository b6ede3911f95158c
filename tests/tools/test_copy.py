"""Copies of checkpoints: between all stores, broken off and resumed, verified, committed last."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from datetime import datetime, timedelta, timezone
from itertools import product

import pytest

from dcp_cloud.checkpoint.location import Location
from dcp_cloud.checkpoint.sweep import sweep
from dcp_cloud.checkpoint.verify import verify_checkpoint
from dcp_cloud.config import RetryConfig, TransferConfig
from dcp_cloud.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    CommitConflictError,
    ConfigError,
    CorruptCheckpointError,
    PermissionDeniedError,
    PreconditionError,
    TransferCancelledError,
    TransientError,
)
from dcp_cloud.stores import s3_copy
from dcp_cloud.stores.base import StoreLimits
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.stores.server_side import copier_between
from dcp_cloud.testing import Fault, FaultyStore, SimulatedCrash
from dcp_cloud.testing.wrappers.base import StoreWrapper
from dcp_cloud.tools.copy import copy_checkpoint, copy_tree
from dcp_cloud.transfer.events import Planned, Progressed
from dcp_cloud.transfer.ranges import upload_part_bytes
from tests.cli.jobs import save_three_ways, save_unevenly
from tests.support.ranks import run_ranks

_STORES = ("memory", "file", "moto", "ceph", "fake-gcs", "azurite")
_CLOUDS = _STORES[2:]


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Three checkpoints of two ranks: checkpoint to name to content."""
    directory = tmp_path_factory.mktemp("copied")
    run_ranks(2, save_three_ways, str(directory))
    return _files(directory)


@pytest.fixture(scope="session")
def uneven(tmp_path_factory):
    """A checkpoint of one object of two parts and one short object: what copies between all stores can do without."""
    directory = tmp_path_factory.mktemp("uneven")
    run_ranks(2, save_unevenly, f"file://{directory}/one")
    return _files(directory)["one"]


def _files(directory):
    return {
        checkpoint.name: {file.name: file.read_bytes() for file in checkpoint.iterdir()}
        for checkpoint in directory.iterdir()
    }


@pytest.fixture
def at(bucket_uri, tmp_path):
    """Make a place on a store: ``at("ceph", "name") -> Location``."""
    buckets = {}

    def make(kind, name, store=None):
        if kind not in buckets:
            buckets[kind] = (
                f"memory://{uuid.uuid4().hex}/r" if kind == "memory"
                else f"file://{tmp_path}/r" if kind == "file"
                else bucket_uri(kind, "r", part_size="5MiB")
            )  # fmt: skip
        root, _, query = buckets[kind].partition("?")
        return _location(f"{root}/{name}?{query}" if query else f"{root}/{name}", store)

    return make


def _location(uri, store=None):
    return Location(uri, transfer=None, store=store, config=None, schemes=None)


def _once(request):
    return request()


def _put(location, contents):
    for name, content in contents.items():
        upload = location.store.create_multipart(name) if name.endswith(".distcp") else None
        if upload is None:
            location.store.put(name, [memoryview(content)])
        else:
            upload.complete([upload.put_part(0, [memoryview(content)])])
    return location


def _contents(location):
    return {
        meta.key: location.store.get(meta.key, max_bytes=1 << 30).data
        for meta in location.store.list()
        if meta.size_bytes
    }


@pytest.mark.parametrize(("source", "target"), list(product(_STORES, _STORES)))
def test_a_copy_that_dies_is_resumed(at, uneven, source, target):
    """Between any two stores: dead after a random request there is no checkpoint, run again there is the same one."""
    origin = _put(at(source, "from"), uneven)
    goal = at(target, "to")
    nth = random.randrange(1, 8)
    print(f"dies at request {nth}")
    dying = FaultyStore(goal.store, [Fault("crash", nth=nth, times=None)])
    broken = Location(goal.uri, transfer=goal.transfer, store=dying, config=None, schemes=None)
    with pytest.raises(SimulatedCrash):
        copy_checkpoint(origin, broken)
    assert ".metadata" not in _contents(goal)
    report = copy_checkpoint(origin, goal)
    assert _contents(goal) == uneven
    assert report.was_there or report.relayed + report.server_side + report.resumed == 2
    assert verify_checkpoint(goal.store).ok


@pytest.mark.parametrize("cloud", _CLOUDS)
def test_a_sweep_deletes_what_a_dead_copy_left(at, uneven, cloud):
    """Objects and unfinished uploads of a copy that nobody finishes are found by a sweep, and nothing else is."""
    origin, goal = _put(at("memory", "from"), uneven), at(cloud, "to")
    dying = FaultyStore(goal.store, [Fault("crash", verb="complete", times=None), Fault("crash", verb="abort")])
    with pytest.raises(SimulatedCrash):
        copy_checkpoint(origin, Location(goal.uri, transfer=goal.transfer, store=dying, config=None, schemes=None))
    assert ".metadata" not in _contents(goal)
    sweep(goal.store, older_than_s=0, now=lambda: datetime.now(timezone.utc) + timedelta(days=1))
    assert not _contents(goal)
    assert not list(goal.store.list_multiparts())
    copy_checkpoint(origin, goal)
    sweep(goal.store, older_than_s=0, now=lambda: datetime.now(timezone.utc) + timedelta(days=1))
    assert _contents(goal) == uneven


def test_parts_are_as_long_as_the_target_needs(files):
    """A target with few parts, or with short objects, decides; the source's limits do not matter."""
    limits = {"min_part_bytes": 2**20, "max_part_bytes": 2**30, "max_parts": 3, "max_put_bytes": 2**20}
    roomy = MemoryStore(uuid.uuid4().hex, limits=StoreLimits(**limits, max_object_bytes=2**30))
    narrow = MemoryStore(uuid.uuid4().hex, limits=StoreLimits(**limits, max_object_bytes=2**20))
    origin = _put(_location(f"memory://{uuid.uuid4().hex}/from"), files["step-100"])
    copy_checkpoint(origin, _location("memory://a/to?part_size=1MiB", roomy))
    assert _contents(_location("memory://a/to", roomy)) == files["step-100"]
    with pytest.raises(ConfigError, match="too long for the target"):
        copy_checkpoint(origin, _location("memory://b/to", narrow))
    assert not list(narrow.list())


def _announced(told, phase):
    return sum(one.size_bytes for one in told if isinstance(one, Planned) and one.phase == phase)


def _done(told, phase):
    return sum(one.size_bytes for one in told if isinstance(one, Progressed) and one.phase == phase)


@pytest.mark.parametrize("cloud", _CLOUDS)
def test_a_provider_copies_within_itself(at, uneven, cloud):
    """Within one provider no byte passes here, and the bytes can be verified all the same."""
    origin, goal = _put(at(cloud, "from"), uneven), at(cloud, "to")
    told = []
    report = copy_checkpoint(origin, goal, read_back=True, hook=told.append)
    assert (report.server_side, report.relayed, report.verified_items) == (2, 0, report.items)
    assert _contents(goal) == uneven
    for phase in ("copy", "verify"):  # as much is done as was announced
        assert _announced(told, phase) == _done(told, phase) > 0
    # Told to, the bytes are read and sent instead.
    assert copy_checkpoint(origin, at(cloud, "again"), server_side=False).relayed == 2


@pytest.mark.parametrize(
    "cloud",
    [
        pytest.param("moto", marks=pytest.mark.xfail(reason="moto copies whatever version is there", strict=True)),
        pytest.param("ceph", marks=pytest.mark.xfail(reason="Ceph 16 looks for the condition elsewhere", strict=True)),
        pytest.param("fake-gcs", marks=pytest.mark.xfail(reason="fake-gcs-server ignores the condition", strict=True)),
        "azurite",
    ],
)
def test_an_object_that_is_replaced_meanwhile_is_not_copied(at, cloud):
    """Whoever moves the bytes, they are those of the version that was listed."""
    origin, goal = _put(at(cloud, "from"), {"a": b"one"}), at(cloud, "to")
    listed = origin.store.head("a")
    origin.store.put("a", [memoryview(b"two")])
    copy = copier_between(origin.store, goal.store)
    assert copy is not None
    with pytest.raises(PreconditionError):
        copy("a", listed, _once)
    assert not _contents(goal)
    assert copy("a", origin.store.head("a"), _once)
    assert _contents(goal) == {"a": b"two"}


def test_what_passes_is_compared_with_its_checksums(at, files):
    """A wrong byte of the source is found on its way: the tensor is named, and the object is not left at the target."""
    damaged = dict(files["step-100"])
    name = next(name for name in damaged if name.startswith("__0_"))
    content = bytearray(damaged[name])
    content[len(content) // 2] ^= 1
    damaged[name] = bytes(content)
    with pytest.raises(CorruptCheckpointError, match="embedding"):
        copy_checkpoint(_put(at("memory", "from"), damaged), at("memory", "to"))
    assert not {name, ".metadata"} & set(_contents(at("memory", "to")))


def test_a_missing_object_is_found_before_anything_is_sent(at, files):
    """A source that lacks an object is refused."""
    partial = {name: content for name, content in files["step-100"].items() if not name.startswith("__1_")}
    with pytest.raises(CorruptCheckpointError, match="missing"):
        copy_checkpoint(_put(at("memory", "from"), partial), at("memory", "to"))


def test_an_object_that_is_too_short_is_found_before_anything_is_sent(at, files):
    """A source of a writer without checksums is refused if an object ends before its items do."""
    short = dict(files["step-200"])
    name = next(name for name in short if name.startswith("__1_"))
    short[name] = short[name][:-1000]
    goal = at("memory", "to")
    with pytest.raises(CorruptCheckpointError, match="its items need"):
        copy_checkpoint(_put(at("memory", "from"), short), goal)
    assert not _contents(goal)


def test_what_an_earlier_try_stored_is_verified(at, files):
    """An object that is there already is not sent again, but read and compared."""
    origin, goal = _put(at("memory", "from"), files["step-100"]), at("memory", "to")
    data = sorted(name for name in files["step-100"] if name.endswith(".distcp"))
    _put(goal, {data[0]: files["step-100"][data[0]]})
    report = copy_checkpoint(origin, goal)
    assert (report.resumed, report.relayed, report.verified_items) == (1, 1, report.items)
    goal = at("memory", "damaged")
    _put(goal, {data[0]: bytes(len(files["step-100"][data[0]]))})
    with pytest.raises(CorruptCheckpointError, match="of the copy is damaged"):
        copy_checkpoint(origin, goal)
    assert ".metadata" not in _contents(goal)


@pytest.mark.parametrize("moment", ["list", "delete"])
def test_a_sweep_takes_nothing_from_a_resumed_copy(at, uneven, moment):
    """A copy that broke off two days ago is resumed while a sweep works: what the copy commits stays whole."""
    origin, goal = _put(at("memory", "from"), uneven), at("file", "to")
    _put(goal, {name: content for name, content in uneven.items() if name.endswith(".distcp")})
    days_ago = time.time() - 2 * 86400
    for name in _contents(goal):
        os.utime(os.path.join(goal.uri.root.removeprefix("file://"), name), (days_ago, days_ago))
    reports, only_once = [], threading.Lock()

    class Sweeping(StoreWrapper):
        def around(self, request, run):
            if request.verb == moment and only_once.acquire(blocking=False):  # a sweep deletes by several threads
                found = run() if moment == "list" else None
                reports.append(copy_checkpoint(origin, goal))
                return run() if found is None else found
            return run()

    sweep(Sweeping(goal.store))
    assert (reports[0].resumed, reports[0].relayed) == (0, 2)
    assert _contents(goal) == uneven
    assert verify_checkpoint(goal.store).ok


def test_what_is_there_is_there_whole(at, files):
    """A commit without its objects is no copy: they are brought back; asked to, every byte is verified again."""
    origin, goal = _put(at("memory", "from"), files["step-100"]), _put(at("memory", "to"), files["step-100"])
    name = next(name for name in files["step-100"] if name.startswith("__0_"))
    goal.store.delete([name])
    report = copy_checkpoint(origin, goal)
    assert (report.was_there, report.relayed, report.resumed) == (False, 1, 1)
    assert _contents(goal) == files["step-100"]
    assert copy_checkpoint(origin, goal).verified_items == 0
    report = copy_checkpoint(origin, goal, read_back=True)
    assert (report.was_there, report.verified_items) == (True, report.items)
    goal.store.put(name, [memoryview(bytes(len(files["step-100"][name])))])
    with pytest.raises(CorruptCheckpointError, match="of the copy is damaged"):
        copy_checkpoint(origin, goal, read_back=True)


def test_items_are_counted_once(at, files):
    """Items that were compared on their way and read back are verified once each."""
    report = copy_checkpoint(_put(at("memory", "from"), files["step-100"]), at("memory", "to"), read_back=True)
    assert (report.relayed, report.verified_items) == (2, report.items)


def test_a_failed_copy_takes_nothing_from_another(at, files):
    """Two copies of one checkpoint to one place: when one fails, the other one's commit keeps its objects."""
    origin, goal = _put(at("memory", "from"), files["step-100"]), at("memory", "to")

    class Overtaken(StoreWrapper):
        """Is overtaken by another copy that commits, after its first object, and refused then."""

        def around(self, request, run):
            if request.verb == "put" and request.key.startswith("__1_"):
                copy_checkpoint(origin, goal)
                raise PermissionDeniedError("no")
            return run()

    target = Location(goal.uri, transfer=goal.transfer, store=Overtaken(goal.store), config=None, schemes=None)
    with pytest.raises(PermissionDeniedError):
        copy_checkpoint(origin, target)
    assert verify_checkpoint(goal.store).ok


@pytest.mark.timeout(60)
def test_a_failure_does_not_wait_for_the_source(at, files):
    """When the target refuses, reading that is paused to be repeated is given up at once."""
    paused = threading.Event()

    class Busy(StoreWrapper):
        """Asks to wait for an hour."""

        def around(self, request, run):
            if request.verb == "get_range" and request.key.startswith("__0_"):
                paused.set()
                raise TransientError("busy", retry_after_s=3600)
            return run()

    class Refusing(StoreWrapper):
        """Takes no data, but says so only when the source is busy."""

        def around(self, request, run):
            if request.verb == "put" and request.key.startswith("__1_"):
                assert paused.wait(30)
                raise PermissionDeniedError("no")
            return run()

    origin, goal = _put(at("memory", "from"), files["step-100"]), at("memory", "to")
    retry = RetryConfig(total_timeout_s=10_000)
    ends = [
        Location(end.uri, transfer=TransferConfig(retry=retry), store=store, config=None, schemes=None)
        for end, store in ((origin, Busy(origin.store)), (goal, Refusing(goal.store)))
    ]
    with pytest.raises(PermissionDeniedError):
        copy_checkpoint(*ends)


@pytest.mark.parametrize("cloud", ["moto", "ceph"])
def test_a_long_object_is_copied_part_by_part(at, uneven, cloud, monkeypatch):
    """Beyond what one request copies, parts are: one that fails is repeated alone, and giving up leaves no upload."""
    monkeypatch.setattr(s3_copy, "_MAX_COPY_BYTES", 5 * 2**20)
    monkeypatch.setattr(s3_copy, "_PART_BYTES", 5 * 2**20)
    name = max(uneven, key=lambda name: len(uneven[name]))
    origin, goal = _put(at(cloud, "from"), {name: uneven[name]}), at(cloud, "to")
    copy, meta = copier_between(origin.store, goal.store), origin.store.head(name)
    requests = []

    def repeat(request):
        requests.append(request)
        if len(requests) == 3:
            raise TransferCancelledError("not wanted any more")
        return request()

    with pytest.raises(TransferCancelledError):
        copy(name, meta, repeat)
    assert not list(goal.store.list_multiparts())
    assert not _contents(goal)
    assert copy(name, meta, _once)
    assert _contents(goal) == {name: uneven[name]}


@pytest.mark.parametrize(("source", "target"), [("step-100", "local-50"), ("local-50", "step-100")])
def test_commits_of_two_kinds_are_not_mixed(at, files, source, target):
    """A commit of all ranks replaces those of single ranks on demand; the other way round it would hide them."""
    origin, goal = _put(at("memory", "from"), files[source]), _put(at("memory", "to"), files[target])
    with pytest.raises(CheckpointExistsError):
        copy_checkpoint(origin, goal)
    if target == "local-50":
        copy_checkpoint(origin, goal, overwrite=True)
        assert _contents(goal) == files[source]
    else:
        with pytest.raises(CheckpointExistsError, match="another checkpoint"):
            copy_checkpoint(origin, goal, overwrite=True)
        assert _contents(goal) == files[target]


def test_another_checkpoint_is_replaced_only_on_demand(at, files):
    """A checkpoint at the target is refused, or replaced whole; the same one is left alone."""
    origin = _put(at("memory", "from"), files["step-100"])
    report = copy_checkpoint(origin, _put(at("memory", "same"), files["step-100"]))
    assert report.was_there
    goal = _put(at("memory", "other"), files["step-200"])
    with pytest.raises(CheckpointExistsError, match="another checkpoint"):
        copy_checkpoint(origin, goal)
    copy_checkpoint(origin, goal, overwrite=True)
    assert verify_checkpoint(goal.store).ok
    assert _contents(goal) == files["step-100"]


def test_names_that_are_not_their_own_are_not_written_over(at, files):
    """torch's own writer gives the objects of all saves the same names: replacing them would break what is there."""
    origin, goal = _put(at("memory", "from"), files["step-200"]), at("memory", "to")
    _put(goal, {**files["step-200"], ".metadata": files["step-200"][".metadata"] + b"."})
    with pytest.raises(CheckpointExistsError, match="same names"):
        copy_checkpoint(origin, goal, overwrite=True)


def test_of_two_commits_one_wins(at, files):
    """Somebody who commits at the target meanwhile is not overwritten."""
    origin, goal = _put(at("memory", "from"), files["step-100"]), at("memory", "to")

    class Overtaken(StoreWrapper):
        """Commits something else just before the copy does."""

        def around(self, request, run):
            if request.verb == "put" and request.key == ".metadata":
                self.store.put(".metadata", [memoryview(b"theirs")])
            return run()

    store = Overtaken(goal.store)
    target = Location(goal.uri, transfer=goal.transfer, store=store, config=None, schemes=None)
    with pytest.raises((CommitConflictError, CheckpointExistsError)):
        copy_checkpoint(origin, target)
    assert goal.store.get(".metadata", max_bytes=10).data == b"theirs"


def test_a_tree_is_copied(at, files):
    """With all checkpoints below a prefix go their names and kinds; what was never committed stays behind."""
    for name, contents in files.items():
        _put(at("memory", f"run/{name}"), contents)
    _put(at("memory", "run/step-300"), {"__0_0.distcp": b"unfinished"})
    reports = copy_tree(at("memory", "run"), at("file", "copy"))
    assert len(reports) == 3
    found = _contents(at("file", "copy"))
    assert found == {f"{name}/{file}": data for name, contents in files.items() for file, data in contents.items()}
    with pytest.raises(CheckpointNotFoundError):
        copy_tree(at("memory", "nowhere"), at("file", "copy"))


def test_a_place_is_not_copied_onto_itself(at):
    """Source and target must differ."""
    with pytest.raises(ConfigError, match="same place"):
        copy_checkpoint(at("memory", "a"), at("memory", "a"))


def test_a_tree_is_not_copied_into_itself(at):
    """The next run would copy the copies."""
    with pytest.raises(ConfigError, match="below it"):
        copy_tree(at("memory", "run"), at("memory", "run/backup"))


def test_one_name_on_two_servers_is_two_places(at, files):
    """Moving to another server with a bucket of the same name is a copy like any other."""
    uris = [f"s3://bucket/run?endpoint_url=http://127.0.0.1:{port}" for port in (1, 2)]
    stores = [MemoryStore(uuid.uuid4().hex) for _ in uris]
    ends = [_location(uri, store) for uri, store in zip(uris, stores, strict=True)]
    copy_checkpoint(_put(ends[0], files["step-100"]), ends[1])
    assert _contents(ends[1]) == files["step-100"]


def test_memory_is_bounded(files):
    """Parts are read when they are about to be sent: no more of them are held than the budget allows."""
    source, held, peak = MemoryStore(uuid.uuid4().hex), set(), [0]
    goal = _location(f"memory://{uuid.uuid4().hex}/to?part_size=1MiB&max_inflight=4MiB&max_concurrency=16")
    part_bytes = {
        key: upload_part_bytes(len(content), part_size_bytes=2**20, limits=goal.store.limits)
        for key, content in files["step-100"].items()
    }

    class Counting(StoreWrapper):
        """Counts the ranges that were read and whose part was not stored yet."""

        def around(self, request, run):
            if request.verb == "get_range" and request.key.endswith(".distcp"):
                held.add((request.key, request.start))
                peak[0] = max(peak[0], len(held))
            result = run()
            if request.verb == "put_part":
                held.discard((request.key, request.index * part_bytes[request.key]))
            return result

    origin = _put(_location("memory://x/from", Counting(source)), files["step-100"])
    target = Location(goal.uri, transfer=goal.transfer, store=Counting(goal.store), config=None, schemes=None)
    copy_checkpoint(origin, target)
    assert 1 <= peak[0] <= 4
    assert held == set()


@pytest.mark.parametrize(("source", "target"), [("file", "file"), ("ceph", "azurite"), ("fake-gcs", "moto")])
def test_killed_and_run_again(at, uneven, source, target):
    """A process that is killed at any request of a copy leaves no checkpoint; the same command finishes it."""
    origin, goal = _put(at(source, "from"), uneven), at(target, "to")
    nth = random.randrange(1, 8)
    print(f"killed at request {nth}")
    script = (
        "import sys\n"
        "from dcp_cloud.checkpoint.location import Location\n"
        "from dcp_cloud.testing import Fault, FaultyStore\n"
        "from dcp_cloud.tools.copy import copy_checkpoint\n"
        "ends = [Location(uri, transfer=None, store=None, config=None, schemes=None) for uri in sys.argv[1:]]\n"
        f"ends[1].store = FaultyStore(ends[1].store, [Fault('kill', nth={nth})])\n"
        "copy_checkpoint(*ends)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(origin.uri), str(goal.uri)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert ".metadata" not in _contents(goal)
    report = copy_checkpoint(origin, goal)
    assert report.relayed + report.server_side + report.resumed == 2
    assert _contents(goal) == uneven
    assert verify_checkpoint(goal.store).ok
