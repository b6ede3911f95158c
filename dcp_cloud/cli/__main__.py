"""``python -m dcp_cloud.cli``, where the script ``dcp-cloud`` is not on the path."""

from __future__ import annotations

from dcp_cloud.cli import main

main()
