"""What a writer knows of one save, from its beginning to its end."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from dcp_cloud.checkpoint.commit import Before
from dcp_cloud.checkpoint.location import Location
from dcp_cloud.stores.cancel import CancelScope
from dcp_cloud.transfer.upload import Uploader


@dataclass(slots=True)
class Save:
    """A save, and where it goes.

    Args:
        location: Its place, which stays its own when the writer is moved.
        save_id: Stands in the names of its objects.
        has_begun: Whether the writer was set up for it.
        has_ended: Whether this rank has nothing more to do.
        rank: This rank.
        use_collectives: Whether one commit is made for all ranks.
        before: What stood at the place when it began, on the rank that commits.
        replaced_keys: Objects of what it replaces.
        knows_replaced: Whether those were looked for.
        uploader: What sends its data, while it does.
        may_be_committed: Whether the commit was tried, and nobody knows that it failed.
        scope: Of the requests before and after the data; those of the data end with the uploader, which cleans up.
    """

    location: Location
    save_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    has_begun: bool = False
    has_ended: bool = False
    rank: int = 0
    use_collectives: bool = True
    before: Before | None = None
    replaced_keys: tuple[str, ...] = ()
    knows_replaced: bool = False
    uploader: Uploader | None = None
    may_be_committed: bool = False
    scope: CancelScope = field(default_factory=CancelScope)

    @property
    def is_cancelled(self) -> bool:
        """Whether it was given up."""
        return self.scope.is_cancelled
