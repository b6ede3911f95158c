"""Go on training while a checkpoint is being saved, and show how far it is: python examples/async_save.py [URI]"""

import sys
import tempfile

import torch
import torch.distributed.checkpoint as dcp

from dcp_cloud import CloudStorageWriter, TransferConfig
from dcp_cloud.transfer.events import Progressed, TransferEvent


def show(event: TransferEvent) -> None:
    if isinstance(event, Progressed):  # called from worker threads
        print(f"  {event.size_bytes:,} bytes more are stored")


def main(uri: str) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pending = None
    for step in range(1, 7):
        loss = model(torch.randn(8, 1024)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.4f}")
        if step % 3 == 0:
            if pending is not None:
                pending.result()  # raises what went wrong: a save that returns is whole
            writer = CloudStorageWriter(
                f"{uri}/step-{step}", transfer=TransferConfig(part_size_bytes=5 << 20), on_event=show
            )
            pending = dcp.async_save({"model": model.state_dict()}, storage_writer=writer)
    pending.result()  # now the last one is committed too


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        main(sys.argv[1] if len(sys.argv) > 1 else f"file://{directory}")
