"""What looks at a user's own place and machine rather than at a checkpoint. Without torch."""
