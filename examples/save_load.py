"""Save a model and its optimizer to S3 and load them again: python examples/save_load.py [URI]

Without a URI it starts an S3 server on this machine.
"""

import os
import sys

import torch
import torch.distributed.checkpoint as dcp

from dcp_cloud import CloudStorageReader, CloudStorageWriter
from dcp_cloud.testing import MotoServer


def main(uri: str) -> None:
    model = torch.nn.Linear(1024, 1024)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(8, 1024)).sum().backward()
    optimizer.step()

    writer = CloudStorageWriter(uri)
    dcp.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, storage_writer=writer)
    print("saved", writer.last_save)

    other = torch.nn.Linear(1024, 1024)
    state = {"model": other.state_dict()}  # any part of what was saved
    dcp.load(state, storage_reader=CloudStorageReader(uri))  # fills the tensors in place
    print("equal:", torch.equal(other.weight, model.weight))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with MotoServer() as server:
            os.environ.update(server.environment)
            server.create_bucket("bucket")
            main(server.uri("bucket", "run/step-1"))
