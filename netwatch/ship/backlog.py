"""What waits to be shipped: the sealed segments without a mark for this bucket, oldest first."""

from __future__ import annotations

import calendar
import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping

from netwatch.storage import layout, shipped
from netwatch.storage.days import Days
from netwatch.storage.files import Files


class Backlog:
    """The sealed segments below ``files`` that are not shipped to ``bucket``; with ``is_again``, all of them."""

    def __init__(self, files: Files, bucket: str, *, is_again: bool = False) -> None:
        self._files = files
        self._bucket = bucket
        self._again: set[str] | None = set() if is_again else None
        """Those that are done, if their marks say nothing."""
        self._days = Days(files)
        self._waiting: dict[str, int] = {}
        self._known: dict[str, set[str]] = {}
        """Those of each directory."""
        self._queue = deque[str]()

    @property
    def waiting(self) -> Mapping[str, int]:
        """The path and size in bytes of each."""
        return self._waiting

    def look(self) -> None:
        """Find what was sealed, and what is gone, since the last look. Raises OSError."""
        new = set[str]()
        for directory in self._days.changed():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                # A name that a power cut takes back could be given again, to other bytes: ship only what stays.
                self._files.sync_directory(directory)
                new |= self._renewed(directory)
        self._queue += sorted(new)

    def _renewed(self, directory: str) -> set[str]:
        """What is new in the directory, once all that is in it is known."""
        known, present = self._known.get(directory, set()), dict(self._unshipped(directory))
        for path in known - present.keys():
            del self._waiting[path]
        self._waiting |= present
        self._known[directory] = set(present)
        return present.keys() - known

    def _unshipped(self, directory: str) -> Iterator[tuple[str, int]]:
        for entry in self._files.entries(directory):
            path = f"{directory}/{entry.name}"
            if layout.sealed_segment(entry.name):
                with contextlib.suppress(FileNotFoundError):  # pruned since it was listed
                    if not self._is_shipped(path):
                        yield path, entry.stat().st_size

    def _is_shipped(self, path: str) -> bool:
        if self._again is not None:
            return path in self._again
        try:
            return shipped.bucket_of(self._files, path) == self._bucket
        except FileNotFoundError:
            raise
        except OSError:  # whoever tries to ship it says what is wrong with it
            return False

    def next(self) -> str | None:
        """The one to ship next; it is given once, and again after :meth:`postpone`."""
        while self._queue:
            path = self._queue.popleft()
            if path in self._waiting:
                return path
        return None

    def postpone(self, path: str) -> None:
        """It could not be shipped: its turn comes again after all others, so that none can hold them up."""
        self._queue.append(path)

    def done(self, path: str) -> None:
        """It waits no more: it is shipped, or gone."""
        if self._waiting.pop(path, None) is not None:
            self._known[os.path.dirname(path)].discard(path)
        if self._again is not None:
            self._again.add(path)

    def oldest_s(self) -> float:
        """How long (wall time, seconds) the oldest has waited since its first line was received; 0 if none waits."""
        names = [layout.time_in_name(os.path.basename(path)) for path in self._waiting]
        if not names:
            return 0.0
        received_at = calendar.timegm(time.strptime(min(names)[:19], "%Y-%m-%dT%H-%M-%S"))
        return max(time.time() - received_at, 0.0)
