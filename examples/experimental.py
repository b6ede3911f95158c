"""Save in another process with torch's experimental checkpointer, load whole and in part.

python examples/experimental.py [URI]
"""

import sys
import tempfile

import torch

from dcp_cloud import make_cloud_async_checkpointer


def main(uri: str) -> None:
    model = torch.nn.Linear(1024, 1024)
    checkpointer = make_cloud_async_checkpointer()  # each rank makes one, after torch.distributed is initialised
    for step in (1, 2):
        state = {"model": model.state_dict(), "step": step}
        staged, written = checkpointer.save(f"{uri}/step-{step}", state)
        staged.result()  # the state dict was copied: the next training step may change the model
        written.result()  # every rank's file is stored and the checkpoint is committed

    state = checkpointer.load(f"{uri}/step-2")  # this rank's file, whole
    print("step", state["step"], "equal:", torch.equal(state["model"]["weight"], model.weight))

    other = torch.nn.Linear(1024, 1024)
    with torch.no_grad():
        checkpointer.load(f"{uri}/step-1", {"model": {"bias": other.bias}})  # reads the bias only, in place
    print("bias equal:", torch.equal(other.bias, model.bias))
    checkpointer.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        main(sys.argv[1] if len(sys.argv) > 1 else f"file://{directory}")
