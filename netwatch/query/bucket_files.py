"""The objects of a bucket as files that DuckDB can read: an fsspec file system over obstore.

DuckDB 2.0 reads a bucket only with an extension that it fetches from the network. And obstore's own adapter asks for a
store of its own, with other time limits, and for each object's head; here one GET brings a whole object, which stands
in memory while it is read: sealed files are small, and compacted ones of a size that is chosen for it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

import obstore
from fsspec import AbstractFileSystem
from obstore.store import S3Store

from netwatch import bucket

PROTOCOL: Final = "netwatch"


class BucketFiles(AbstractFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """What stands at ``netwatch://KEY`` is the object KEY of the store, below its prefix; only to read."""

    protocol = PROTOCOL
    cachable = False  # fsspec would keep every store

    def __init__(self, store: S3Store, sizes: Mapping[str, int]) -> None:
        """``sizes`` are those of the objects, in bytes, by their keys."""
        super().__init__()
        self._store = store
        self._sizes = sizes

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """What the listing said of the object."""
        key = self._strip_protocol(path)
        return {"name": key, "type": "file", "size": self._sizes[key]}

    def glob(self, path: str, **_: Any) -> list[str]:
        """The path itself: it was listed before."""
        return [path]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> _Whole:
        if mode != "rb":
            raise OSError(f"{PROTOCOL}:// is only to read")
        key = self._strip_protocol(path)
        try:
            return _Whole(obstore.get(self._store, key).bytes())
        except FileNotFoundError:
            raise OSError(f"{key} is gone from the bucket, compacted or deleted meanwhile: ask again.") from None
        except Exception as error:  # obstore's have no common base
            raise OSError(f"Cannot read {key} in the bucket: {bucket.reason(error)}.") from None


class _Whole(io.BytesIO):
    """A file that knows its size, which DuckDB asks for."""

    def __init__(self, content: Any) -> None:
        super().__init__(content)
        self.size = len(content)
