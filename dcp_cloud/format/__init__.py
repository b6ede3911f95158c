"""The bytes of a checkpoint: torch records, ``.metadata``, names. Knows no store."""
