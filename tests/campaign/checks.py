"""What has to hold after every run, whatever happened in it."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from dcp_cloud import CloudStorageReader
from dcp_cloud.checkpoint.commit import object_keys
from dcp_cloud.checkpoint.sweep import sweep
from dcp_cloud.checkpoint.verify import verify_checkpoint
from dcp_cloud.errors import NotFoundError
from dcp_cloud.stores.base import ObjectStore
from tests.campaign import jobs
from tests.campaign.jobs import Content, Outcome
from tests.campaign.places import Place
from tests.campaign.plan import Run

# Far above what any retry setting of the campaign allows, on a machine that is busy with other things.
DEADLINE_S = 60.0
_NOTHING_THERE = ("CheckpointNotFoundError", "IncompleteCheckpointError")


class BrokenInvariantError(AssertionError):
    """Something happened that must never happen."""


@dataclass(slots=True)
class Scene:
    """A run under way: where it happens, and what it has seen.

    Args:
        run: The run.
        place: Where.
        store: The place's store, which behaves.
        counts: What happened how often, for the totals.
    """

    run: Run
    place: Place
    store: ObjectStore
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def content(self) -> Content:
        """The state dict."""
        return Content(seed=self.run.seed, is_large=self.run.is_large)

    def count(self, what: str, times: int = 1) -> None:
        """Take note of something for the totals."""
        self.counts[what] = self.counts.get(what, 0) + times

    def require(self, ok: bool, broken: str, *details: object) -> None:
        """Raise unless an invariant holds."""
        if not ok:
            raise BrokenInvariantError(" | ".join([broken, *map(str, details)]))

    def saw(self, name: str, outcome: Outcome) -> None:
        """Take note of how a save or load ended, and judge the way in which it did."""
        self.count(f"{name}: {'ok' if outcome.ok else '+'.join(sorted(set(outcome.errors)))}")
        self.require(not outcome.complaints, f"{name}: {'; '.join(outcome.complaints)}", outcome)
        self.require(outcome.duration_s < DEADLINE_S, f"{name} took {outcome.duration_s:.0f} s", outcome)
        if name.startswith("load") and outcome.ok:
            self.require(bool(outcome.versions), f"{name} returned numbers that nobody saved", outcome)


def commit_etag(store: ObjectStore) -> str | None:
    """Give the version of the commit."""
    try:
        return store.head(".metadata").etag
    except NotFoundError:
        return None


def check_one_of(scene: Scene, versions: Collection[int | None]) -> None:
    """One of these versions is loaded, whole, and verified; None: there may be none."""
    outcome = jobs.load(scene.place.uri, scene.store, scene.content, scene.run.transfer, no_dist=True)
    scene.saw("load afterwards", outcome)
    if outcome.ok:
        scene.require(
            bool(set(outcome.versions) & set(versions)),
            f"the checkpoint is version {outcome.versions}, it may be one of {list(versions)}",
        )
        report = verify_checkpoint(scene.store, transfer=scene.run.transfer)
        scene.require(report.ok, "verify finds problems in what loads", report.problems)
    else:
        scene.require(None in versions, f"the checkpoint is lost: one of {list(versions)} must load", outcome)
        scene.require(set(outcome.errors) <= set(_NOTHING_THERE), "not what a missing checkpoint raises", outcome)


def check_damaged(scene: Scene, versions: Collection[int | None]) -> None:
    """Stored bytes were damaged: what is loaded is still right, or the damage is told by load and by verify."""
    outcome = jobs.load(scene.place.uri, scene.store, scene.content, scene.run.transfer, no_dist=True)
    scene.saw("load of damaged", outcome)
    if outcome.ok:
        scene.require(bool(set(outcome.versions) & set(versions)), "a damaged checkpoint loads as another", outcome)
    elif None not in versions:
        report = verify_checkpoint(scene.store, transfer=scene.run.transfer)
        scene.require(not report.ok, "verify finds nothing wrong with what does not load", outcome)


def check_swept(scene: Scene, *, is_readable: bool = True) -> None:
    """A sweep leaves no unfinished upload and no object that nothing names."""
    later = datetime.now(timezone.utc) + timedelta(hours=1)
    report = sweep(scene.store, older_than_s=0, now=lambda: later, transfer=scene.run.transfer)
    scene.count("orphans swept", len(report.orphans))
    scene.count("uploads swept", len(report.uploads))
    uploads = [upload.key for upload in scene.store.list_multiparts()]
    scene.require(not uploads, "uploads are left after a sweep", uploads)
    if is_readable:
        check_no_orphans(scene)


def check_no_orphans(scene: Scene) -> None:
    """Every object is a commit, or named by one."""
    keys = {meta.key for meta in scene.store.list()}
    commits = {key for key in keys if key.endswith(".metadata")}
    named = set(commits)
    reader = CloudStorageReader(scene.place.uri, store=scene.store, transfer=scene.run.transfer)
    for key in commits:
        named |= object_keys(reader._read_commit(key))
    scene.require(keys == named, "objects that nothing names, or names without objects", sorted(keys ^ named))


def check_next_save(scene: Scene) -> None:
    """Whatever happened, the next save succeeds and cleans up behind itself."""
    outcome = jobs.save(
        scene.place.uri, scene.store, scene.content, 4, scene.run.transfer, no_dist=True, mode="none", overwrite=True
    )
    scene.saw("save afterwards", outcome)
    scene.require(outcome.ok, "the next save fails", outcome)
    check_one_of(scene, [4])


def check_no_threads(scene: Scene) -> None:
    """No thread of a transfer outlives it."""
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("dcp_cloud")]
    scene.require(not left, "threads are left", left)


def open_descriptors() -> int:
    """Count what this process has open."""
    return len(os.listdir("/proc/self/fd"))
