"""One compactor at a time: a lease in the bucket, taken and kept by conditional PUTs.

It saves work, and no report rests on it: whatever two compactors do at once, each removes only what it has read back
from another object. So clocks that differ, or a process that was stopped for longer than its lease, do no harm.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import S3Store

_PATH: Final = "compaction.lease"
"""No reader's glob matches it."""


class Held(Exception):
    """Another compactor has the lease, or has taken it over; the message says who."""


class Lease:
    """Ours in ``store`` for ``seconds`` from each :meth:`keep` on: ``with Lease(…)`` takes and releases it.

    It raises :class:`Held`, and obstore's errors.
    """

    def __init__(self, store: S3Store, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._holder = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(4)}"
        self._e_tag: str | None = None
        self._keep_at_s = 0.0

    def __enter__(self) -> Self:
        if not self._put("create"):
            holder, until_s, e_tag = self._read()
            if time.time() < until_s and holder != self._holder:  # ours: stored by a PUT whose answer was lost
                raise Held(f"{holder}, for {until_s - time.time():.0f} s more")
            if not self._put({"e_tag": e_tag}):
                raise Held("one that came first")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(Exception):  # it ends by itself
            self._put({"e_tag": self._e_tag}, until_s=0.0)

    def keep(self) -> None:
        """Prolong it, if a third of its time is over."""
        if time.monotonic() < self._keep_at_s or self._put({"e_tag": self._e_tag}):
            return
        holder, _, e_tag = self._read()
        if holder != self._holder or not self._put({"e_tag": e_tag}):
            raise Held(f"{holder}, which took it over")

    def _put(self, mode: PutMode, until_s: float | None = None) -> bool:
        """Write it, if the condition holds."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        began_s = time.monotonic()
        until_s = time.time() + self._seconds if until_s is None else until_s
        content = json.dumps({"holder": self._holder, "until": until_s, "nonce": secrets.token_hex(4)}).encode()
        try:
            self._e_tag = self._store.put(_PATH, content, mode=mode)["e_tag"]
        except (AlreadyExistsError, PreconditionError):
            return False
        self._keep_at_s = began_s + self._seconds / 3
        return True

    def _read(self) -> tuple[str, float, str | None]:
        """Who holds it, until when, and its tag; what is none of ours holds nothing."""
        found = self._store.get(_PATH)
        e_tag = found.meta["e_tag"]
        try:
            lease = json.loads(bytes(found.bytes()))
            return str(lease["holder"]), float(lease["until"]), e_tag
        except (ValueError, KeyError, TypeError):
            return "", 0.0, e_tag
