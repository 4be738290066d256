"""Makes one object of a group of them: read, merge, put, read back; then, after a time of grace, remove the sources.

A source is removed only when every line of it was read back from another object. Whatever interrupts it, each line
stands in the bucket at least once; the next compaction finds what was left, and removes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from netwatch import log
from netwatch.compaction import plan
from netwatch.compaction.lease import Lease
from netwatch.compaction.plan import Object
from netwatch.ship.delivery import DIGEST
from netwatch.storage import layout, merging
from netwatch.storage.merging import Damaged, Merger

if TYPE_CHECKING:
    from obstore.store import S3Store


@dataclasses.dataclass
class Done:
    """What was done so far."""

    sources: int = 0
    sources_bytes: int = 0
    objects: int = 0
    objects_bytes: int = 0
    duplicates: int = 0
    wrong: int = 0
    """Objects that could not be read or written whole; they stay."""


class Compactor:
    """Compacts what lies in ``store``, as long as the ``lease`` is ours; sources stay ``grace_s`` beside their heir."""

    def __init__(self, store: S3Store, lease: Lease, *, grace_s: float) -> None:
        self._store = store
        self._lease = lease
        self._grace_s = grace_s
        self._replaced: list[tuple[float, list[str]]] = []
        """When (wall time) to remove which sources."""
        self.done = Done()

    def compact(self, group: Sequence[Object]) -> None:
        """Make one object of the group, and note its sources. Raises obstore's errors, and Held."""
        merger, sources = Merger(), list[Object]()
        for source in group:
            self._lease.keep()
            with self._read(source.path) as fd:
                if fd is None:
                    continue
                try:
                    merger.add(fd)
                except Damaged as damaged:
                    self.done.wrong += 1
                    log.error("compact_damaged", path=source.path, detail=str(damaged))
                    continue
            sources.append(source)
        if len(sources) < 2:
            return
        path = plan.path_of(sources, merger.ids)
        size_bytes = self._put(path, merger)
        if size_bytes is None:
            return
        replaced = [source for source in sources if source.path != path]
        heirs_lines = len(merger.ids) * (len(replaced) < len(sources))  # an interrupted compaction made it already
        duplicates = merger.duplicates - heirs_lines
        heirs_age_s = [time.time() - source.modified_at_s for source in sources if source.path == path]
        self._replaced.append(
            (time.time() + self._grace_s - max(heirs_age_s, default=0.0), [source.path for source in replaced])
        )
        self.done.sources += len(replaced)
        self.done.sources_bytes += sum(source.size_bytes for source in replaced)
        self.done.objects += 1
        self.done.objects_bytes += size_bytes
        self.done.duplicates += duplicates
        log.info(
            "compacted",
            path=path,
            bytes=size_bytes,
            lines=len(merger.ids),
            duplicates=duplicates,
            sources=len(replaced),
            sources_bytes=sum(source.size_bytes for source in replaced),
        )

    def remove(self, *, is_waiting: bool) -> None:
        """Remove the sources whose grace is over; with ``is_waiting`` all of them, when it is."""
        while self._replaced:
            due_at_s, paths = self._replaced[0]
            self._lease.keep()
            if (wait_s := due_at_s - time.time()) > 0:
                if not is_waiting:
                    return
                time.sleep(min(wait_s, 1.0))
                continue
            self._store.delete(paths)
            self._replaced.pop(0)
            log.info("compact_removed", sources=len(paths), first=paths[0])

    def _put(self, path: str, merger: Merger) -> int | None:
        """The size of the new object, once it was read back; None if that is not what it should be."""
        from obstore.exceptions import AlreadyExistsError

        content = merger.finish()
        digest = hashlib.sha256(content).hexdigest()
        self._lease.keep()
        try:
            self._store.put(
                path,
                content,
                mode="create",
                attributes={"Content-Type": "application/zstd", DIGEST: digest},
                use_multipart=False,
            )
        except AlreadyExistsError:  # an interrupted compaction made it, perhaps with another zstd
            pass
        with self._read(path) as fd:
            try:
                if fd is None:
                    raise Damaged("it is gone")
                if merging.ids_of(fd) != merger.ids:
                    raise Damaged("other lines stand in it")
            except Damaged as damaged:
                self.done.wrong += 1
                log.error("compact_failed", path=path, detail=str(damaged))
                return None
            return os.fstat(fd).st_size

    @contextlib.contextmanager
    def _read(self, path: str) -> Iterator[int | None]:
        """The object's content as a file; None if it is gone."""
        try:
            content = bytes(self._store.get(path).bytes())
        except FileNotFoundError:
            yield None
            return
        fd = merging.held(content)
        try:
            yield fd
        finally:
            os.close(fd)


def days(store: S3Store) -> list[str]:
    """The prefixes of the days in the bucket, oldest first. Raises obstore's errors."""
    return sorted(day for day in store.list_with_delimiter()["common_prefixes"] if layout.is_day(day))


def objects(store: S3Store, day: str) -> list[Object]:
    """The objects with reports below a day's prefix. Raises obstore's errors."""
    found = []
    for page in store.list(day):
        for item in page:
            parsed = plan.parsed(item["path"], item["size"], item["last_modified"].timestamp())
            if parsed:
                found.append(parsed)
    return found
