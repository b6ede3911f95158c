"""Bare dcp.save, dcp.load and dcp.async_save with a URI: python examples/install.py [URI]

Without a URI it starts an S3 server on this machine.
"""

import os
import sys

import torch
import torch.distributed.checkpoint as dcp

import dcp_cloud
from dcp_cloud.testing import MotoServer


def main(uri: str) -> None:
    dcp_cloud.install(transfer=dcp_cloud.TransferConfig(max_concurrency=8))  # once in each rank
    steps = [str(dcp_cloud.StoreURI.parse(uri).child(f"step-{step}")) for step in (1, 2)]
    model = torch.nn.Linear(1024, 1024)
    dcp.save({"model": model.state_dict()}, checkpoint_id=steps[0])
    dcp.async_save({"model": model.state_dict()}, checkpoint_id=steps[1]).result()

    for step in steps:
        other = torch.nn.Linear(1024, 1024)
        dcp.load({"model": other.state_dict()}, checkpoint_id=step)
        print(f"{step} equal:", torch.equal(other.weight, model.weight))
    dcp_cloud.uninstall()  # torch chooses as before


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with MotoServer() as server:
            os.environ.update(server.environment)
            server.create_bucket("bucket")
            main(server.uri("bucket", "run"))
