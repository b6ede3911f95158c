"""An object server in memory that is faster than its clients, for measuring clients.

It speaks as much of S3, of Google's JSON API and of Azure's Blob API as checkpoints need. It authenticates nobody and
verifies nothing. Bodies are received straight into a file in memory, made and touched when the server starts, and sent
from there with ``sendfile``: one copy on the way in, none on the way out. A link can be shaped: a delay before the
first byte of each answer, and a rate for each connection.

    python -m benchmarks.sink --gib 4 --port 0

prints the port and runs until its standard input is closed. ``/_sink/stats``, ``/_sink/reset``, ``/_sink/clear`` and
``/_sink/shape?first_byte_s=0.03&bytes_per_s=90e6`` are for whoever measures.
"""
