"""Benchmarks: what a save and a load cost, beside bare sockets and beside the other ways to do it."""
