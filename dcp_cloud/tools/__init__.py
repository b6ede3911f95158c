"""What looks at checkpoints and at the places they lie in from outside a job: the logic behind the commands."""
