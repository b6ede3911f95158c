"""Make a bucket on every server that the environment names: ``python docker/create_buckets.py NAME``."""

from __future__ import annotations

import os
import sys

from azure.core.exceptions import ResourceExistsError
from botocore.exceptions import ClientError
from google.api_core.exceptions import Conflict

from dcp_cloud.testing import ObjectServer, external_servers


def create(server: ObjectServer, bucket: str) -> None:
    """Create a bucket unless it is there."""
    try:
        server.create_bucket(bucket)
    except (ResourceExistsError, Conflict):
        return
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise


if __name__ == "__main__":
    for external in external_servers(os.environ).values():
        with external as running:
            create(running, sys.argv[1])
