"""Segments on disk: how they are written, sealed, recovered and read. Nothing here knows of HTTP or of the queue."""
