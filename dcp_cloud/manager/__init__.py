"""Keeping the checkpoints of a run: saving, finding the latest, deleting what a policy does not keep."""
