"""A training loop under a CheckpointManager, run twice, as after a restart: python examples/manager.py [URI]"""

import sys
import tempfile

import torch

from dcp_cloud import CheckpointManager


def train(uri: str, last_step: int) -> None:
    model = torch.nn.Linear(256, 256)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with CheckpointManager(uri, keep_last=2, keep_every=100, best_metric="loss") as manager:
        manager.on_preemption(deadline_s=30)  # SIGTERM: the save under way is finished or given up in time
        step = 0
        if manager.latest() is not None:
            step = manager.restore({"model": model.state_dict()})  # fills the tensors in place
            print(f"resumed at step {step}")
        while step < last_step:
            step += 1
            loss = model(torch.ones(8, 256)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 20 == 0:
                manager.async_save(step, {"model": model.state_dict()}, {"loss": loss.item()})
        manager.wait()
        for info in manager.list():
            print(f"  step {info.step}: {info.size_bytes:,} bytes, {info.metrics}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        place = sys.argv[1] if len(sys.argv) > 1 else f"file://{directory}/run"
        train(place, 130)
        train(place, 250)
