"""Which objects are to become one: by their names alone, which say when what is in them was received.

A compacted object is named for the times of the first and the last object that went into it, and for the ids of its
lines: ``date=2026-11-22/reports-2026-11-22T10-00-03.512Z--2026-11-22T10-59-58.020Z-9f3a0c12….jsonl.zst``. So what a
compaction that was interrupted left behind, and what was shipped late, is found beside what it belongs to.
"""

from __future__ import annotations

import calendar
import dataclasses
import hashlib
import time
from collections.abc import Iterable, Iterator
from typing import Final

from netwatch.storage import layout

_HOUR: Final = slice(0, 13)


@dataclasses.dataclass(frozen=True, order=True)
class Object:
    """An object with reports: the first and the last time in its name, or in those that it was made of."""

    first: str
    last: str
    path: str
    size_bytes: int
    modified_at_s: float
    is_compacted: bool


def parsed(path: str, size_bytes: int, modified_at_s: float) -> Object | None:
    """The object at ``path`` (``date=…/…``); None if it is none of ours."""
    name = path.rpartition("/")[2]
    times = layout.times_in_name(name)
    if times is None:
        return None
    return Object(*times, path, size_bytes, modified_at_s, layout.sealed_segment(name) is None)


def path_of(sources: Iterable[Object], ids: Iterable[bytes]) -> str:
    """Where what the sources become stands: the same for the same lines, whatever their order and compression."""
    sources = list(sources)
    first, last = min(source.first for source in sources), max(source.last for source in sources)
    digest = hashlib.sha256(b"".join(sorted(ids))).hexdigest()[:16]
    return layout.compacted_path(first, last, digest)


def groups(objects: Iterable[Object], now_s: float, settle_s: float, target_bytes: int) -> Iterator[list[Object]]:
    """Those of a day's objects that are to become one, group by group, in the order of their times.

    An hour is looked at ``settle_s`` after its end. A group has ``target_bytes`` or a little more, unless its hour has
    less. What lies between the first and last time of a compacted object always joins it.
    """
    hours: dict[str, list[Object]] = {}
    for found in sorted(objects):
        hours.setdefault(found.first[_HOUR], []).append(found)
    for hour, members in hours.items():
        if now_s >= calendar.timegm(time.strptime(hour, "%Y-%m-%dT%H")) + 3600 + settle_s:
            yield from _groups(members, target_bytes)


def _groups(members: list[Object], target_bytes: int) -> Iterator[list[Object]]:
    group: list[Object] = []
    for cluster in _clusters(members):
        size_bytes = sum(member.size_bytes for member in cluster)
        if len(cluster) == 1 and cluster[0].is_compacted and size_bytes >= target_bytes / 2:  # it is done
            if len(group) > 1:
                yield group
            group = []
            continue
        group += cluster
        if sum(member.size_bytes for member in group) >= target_bytes:
            if len(group) > 1:
                yield group
            group = []
    if len(group) > 1:
        yield group


def _clusters(members: list[Object]) -> Iterator[list[Object]]:
    """Compacted objects with all that lies within their times, and each other object alone."""
    cluster: list[Object] = []
    last = ""
    for member in members:
        if cluster and (member.first > last or not (member.is_compacted or any(m.is_compacted for m in cluster))):
            yield cluster
            cluster, last = [], ""
        cluster.append(member)
        last = max(last, member.last)
    if cluster:
        yield cluster
