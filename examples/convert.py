"""Convert a checkpoint to torch.save and safetensors and back: python examples/convert.py [URI]

Without a URI it works in memory.
"""

import sys

import torch
import torch.distributed.checkpoint as dcp

from dcp_cloud import CloudStorageWriter, CloudTorchSaveReader, StoreURI, convert_checkpoint


def main(uri: StoreURI) -> None:
    model = torch.nn.Linear(1024, 1024)
    checkpoint, file = uri.child("step-1"), uri.child("step-1.pt")
    dcp.save({"model": model.state_dict(), "epoch": 3}, storage_writer=CloudStorageWriter(checkpoint))

    print(convert_checkpoint(checkpoint, file))  # torch.load opens it
    print(convert_checkpoint(checkpoint, uri.child("model"), only="model."))  # safetensors files and their index
    print(convert_checkpoint(file, uri.child("again")))  # a distributed checkpoint once more

    state = {"model": torch.nn.Linear(1024, 1024).state_dict()}
    dcp.load(state, storage_reader=CloudTorchSaveReader(file))  # or load the file as it is, on any number of ranks
    print("equal:", torch.equal(state["model"]["weight"], model.weight))


if __name__ == "__main__":
    main(StoreURI.parse(sys.argv[1] if len(sys.argv) > 1 else "memory://bucket/run"))
