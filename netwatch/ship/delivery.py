"""One object's way into the bucket: created if it is not there, then read back; never overwritten."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from netwatch import bucket

if TYPE_CHECKING:
    from obstore.store import S3Store

DIGEST: Final = "sha256"
"""The member of an object's metadata that has the SHA-256 of its bytes, in hex."""
_TYPE: Final = "application/zstd"


class Failed(Exception):
    """The store did not do it, this time; ``kind`` is one of :data:`~netwatch.bucket.KINDS`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Conflict(Exception):
    """Something else stands there; the message says how the two differ."""


async def deliver(store: S3Store, key: str, data: bytes) -> str:
    """Put ``data`` there unless something stands there already, and see that it is this; its SHA-256 in hex.

    The PUT carries its checksum on the wire (:meth:`netwatch.bucket.Bucket.open`), so what the store has taken is what
    was sent. Raises :class:`Failed`, after which it may be there all the same, or :class:`Conflict`.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError

    digest = hashlib.sha256(data).hexdigest()
    try:
        await store.put_async(
            key, data, mode="create", attributes={"Content-Type": _TYPE, DIGEST: digest}, use_multipart=False
        )
    except AlreadyExistsError:  # perhaps from a try of ours that timed out, and landed later
        pass
    except (BaseError, OSError) as error:
        raise Failed(bucket.kind(error), bucket.reason(error)) from None
    return await verified(store, key, data)


async def verified(store: S3Store, key: str, data: bytes) -> str:
    """The SHA-256 of ``data``, which the bucket has there. Raises :class:`Failed` or :class:`Conflict`."""
    from obstore.exceptions import BaseError

    digest = hashlib.sha256(data).hexdigest()
    try:
        found = await store.get_async(key, options={"head": True})
        if found.meta["size"] != len(data):
            raise Conflict(f"it has {found.meta['size']} bytes there and {len(data)} here")
        there = found.attributes.get(DIGEST) or await _digest_of(store, key)
    except (BaseError, OSError) as error:
        raise Failed(bucket.kind(error), bucket.reason(error)) from None
    if there != digest:
        raise Conflict(f"its SHA-256 is {there} there and {digest} here")
    return digest


async def _digest_of(store: S3Store, key: str) -> str:
    """Read it whole: another program put it there, and noted no digest."""
    digest = hashlib.sha256()
    async for piece in (await store.get_async(key)).stream():
        digest.update(piece)
    return digest.hexdigest()
