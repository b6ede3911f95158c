"""Object stores behind one contract: one SDK, one file."""
