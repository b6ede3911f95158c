"""Save a model and its optimizer by torch's state-dict helpers, sharded or not: python examples/state_dict.py [URI]"""

import sys
import tempfile

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from dcp_cloud import CloudLoadPlanner, CloudStorageReader, CloudStorageWriter


class Training:
    """torch calls state_dict and load_state_dict of such an object itself."""

    def __init__(self) -> None:
        self.model = torch.nn.Linear(256, 256)  # or fully_shard(model): the helpers are the same
        self.optimizer = torch.optim.AdamW(self.model.parameters())

    def state_dict(self) -> dict:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state: dict) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def main(uri: str) -> None:
    training, other = Training(), Training()
    training.model(torch.randn(8, 256)).sum().backward()
    training.optimizer.step()
    dcp.save({"training": training}, storage_writer=CloudStorageWriter(uri))
    dcp.load({"training": other}, storage_reader=CloudStorageReader(uri), planner=CloudLoadPlanner(safe_globals=[]))
    print("equal:", torch.equal(other.model.weight, training.model.weight))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        main(sys.argv[1] if len(sys.argv) > 1 else f"file://{directory}")
