"""Imported by the process that ranks are forked from, when it starts: what most ranks need, and takes seconds.

No thread may be started here and nothing computed, since neither survives a fork. And no SDK imported: a rank imports
those of the stores that it uses.
"""

from __future__ import annotations

import importlib

from dcp_cloud.testing.servers.guard import die_with_parent

# The ranks end with this process, and hold open the pipe by which it would notice the end of the tests.
die_with_parent()

for _name in (
    "torch._dynamo",  # what DTensor imports when one is made
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "dcp_cloud.checkpoint.reader",
    "dcp_cloud.checkpoint.writer",
    "dcp_cloud.stores.registry",
    "dcp_cloud.testing",
    "tests.support.rank_child",
    "pytest",
):
    importlib.import_module(_name)
