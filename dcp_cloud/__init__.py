"""Save and load PyTorch Distributed Checkpoints directly on object stores."""
