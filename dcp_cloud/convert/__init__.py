"""Checkpoints from one form into another, on any store: torch's distributed form, ``torch.save``, safetensors."""
