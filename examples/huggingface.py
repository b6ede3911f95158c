"""Save a model as safetensors files, load it, merge its shards: python examples/huggingface.py [URI]

Without a URI it starts an S3 server on this machine.
"""

import os
import sys

import torch
import torch.distributed.checkpoint as dcp

from dcp_cloud import CloudHuggingFaceStorageReader, CloudHuggingFaceStorageWriter, StoreURI, consolidate_safetensors
from dcp_cloud.testing import MotoServer


def main(uri: StoreURI) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(512, 2048), torch.nn.Linear(2048, 512))

    # On several ranks each of them stores its shards; save_distributed=False is for whole tensors.
    writer = CloudHuggingFaceStorageWriter(uri.child("shards"), save_distributed=True)
    dcp.save(model.state_dict(), storage_writer=writer)
    print(consolidate_safetensors(uri.child("shards"), uri.child("model"), max_file_bytes=5_000_000))

    other = torch.nn.Sequential(torch.nn.Linear(512, 2048), torch.nn.Linear(2048, 512))
    state = other.state_dict()
    dcp.load(state, storage_reader=CloudHuggingFaceStorageReader(uri.child("model")))
    print("equal:", all(torch.equal(state[name], value) for name, value in model.state_dict().items()))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(StoreURI.parse(sys.argv[1]))
    else:
        with MotoServer() as server:
            os.environ.update(server.environment)
            server.create_bucket("bucket")
            main(StoreURI.parse(server.uri("bucket", "models/small")))
