"""The mark on a sealed file that says that it is shipped: an extended attribute, set once the bucket was read back.

It is the hand-over between two processes, the shipper and the writer, whose retention may need it. It stands in the
file's own inode: it comes and goes with the very bytes that were shipped, and no index can differ from it. One that is
lost (a copy, a restored backup, a power cut) costs a question to the bucket; a false one nobody writes.
"""

from __future__ import annotations

from typing import Final

from netwatch.storage import layout
from netwatch.storage.files import Files

_NAME: Final = "user.netwatch.shipped"
_PROOF_NAME: Final = "user.netwatch.ships"


def bucket_of(files: Files, path: str) -> str | None:
    """To which bucket (``s3://name/prefix``) the file was shipped; None if it was to none. Raises OSError."""
    mark = files.attribute(path, _NAME)
    return None if mark is None else mark.decode(errors="replace").partition(" ")[0]


def prove(files: Files) -> None:
    """Raise OSError unless this process can mark files here: their owner, on a file system that keeps the marks."""
    fd = files.open_directory(layout.REPORTS)
    try:
        files.set_attribute(fd, _PROOF_NAME, b"")
    finally:
        files.close(fd)


def mark(files: Files, fd: int, bucket: str, digest: str) -> None:
    """Say that the open file, with this SHA-256, was seen in the bucket. Raises OSError."""
    files.set_attribute(fd, _NAME, f"{bucket} {digest}".encode())
