"""torch's storage protocol: the only floor that knows how DCP saves and loads."""
