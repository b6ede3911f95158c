"""Servers to test against and stores that misbehave on purpose; for users' tests too."""
