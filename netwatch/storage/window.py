"""Which idempotency keys were stored lately: a key is claimed with its commit and never before.

After a crash the window is filled again from what recovery reads: the ids of lines that came with a key follow from it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

_VERSION = 14
"""Where the version of a UUID stands in its text; lines that came with a key have version 8."""


class Window:
    """The keys of the last ``window_s``, at most ``max_keys`` of them, oldest forgotten first. Times are monotonic."""

    def __init__(self, window_s: float, max_keys: int) -> None:
        self._window_s = window_s
        self._max_keys = max_keys
        self._keys: dict[bytes, tuple[str, float]] = {}
        self._ids: dict[bytes, float] = {}

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._keys)

    def first_id(self, key: bytes, now_s: float) -> str | None:
        """The id that the first answer to the key's digest gave, None if the key is not claimed."""
        self._forget(now_s)
        first_id, _ = self._keys.get(key, (None, 0.0))
        return first_id

    def claim(self, keys: Mapping[bytes, str], now_s: float) -> None:
        """The requests with these keys are stored; the values are their first ids."""
        for key, first_id in keys.items():
            self._keys.pop(key, None)
            self._keys[key] = (first_id, now_s)
        while len(self._keys) > self._max_keys:
            del self._keys[next(iter(self._keys))]
        self._forget(now_s)

    def learn(self, ids: Iterable[bytes], now_s: float) -> None:
        """Recovery read lines with these ids; those that came with a key can be posted again."""
        self._forget(now_s)
        for known in ids:
            if known[_VERSION] == ord("8"):
                self._ids.pop(known, None)
                self._ids[known] = now_s
        while len(self._ids) > self._max_keys:
            del self._ids[next(iter(self._ids))]

    @property
    def ids(self) -> Container[bytes]:
        """The ids of lines that recovery read and that came with a key."""
        return self._ids

    def _forget(self, now_s: float) -> None:
        """Drop what is over; both are in the order of their times."""
        over_s = now_s - self._window_s
        while self._keys and next(iter(self._keys.values()))[1] <= over_s:
            del self._keys[next(iter(self._keys))]
        while self._ids and next(iter(self._ids.values())) <= over_s:
            del self._ids[next(iter(self._ids))]
