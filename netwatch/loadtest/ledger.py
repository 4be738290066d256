"""What became of each report of a run, five bytes a report: the client writes it, the audit reads it."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable
from enum import IntEnum


class Fate(IntEnum):
    """What the client knows of a report."""

    UNKNOWN = 0  # sent, and no answer that tells: may be stored, at most once
    ACKED = 1  # answered 200: must be stored exactly once
    REJECTED = 2  # answered 4xx, or bad whatever the answer: must not be stored
    UNSENT = 3  # no connection: must not be stored


def fate_of(outcome: int | str) -> Fate:
    """What an answer's status, or the kind of error in its place, says about the reports of the request."""
    if outcome == 200:
        return Fate.ACKED
    if outcome == "refused":
        return Fate.UNSENT
    if isinstance(outcome, int) and 400 <= outcome < 500:
        return Fate.REJECTED
    return Fate.UNKNOWN


def mark_of(line_id: str) -> int:
    """32 bits of the id of a line; never 0, which stands for none."""
    return zlib.crc32(line_id.encode()) | 1


class Ledger:
    """The fates of all reports of one run, whose ids are `<run>-<client>-<seq>`, and the marks of their lines' ids, as
    far as an answer gave them."""

    def __init__(self, run: str, clients: int) -> None:
        self.run = run
        self.fates = [bytearray() for _ in range(clients)]
        self.marks = [array("I") for _ in range(clients)]

    def take(self, client: int, count: int) -> range:
        """The next `count` sequence numbers of a client; their fate is unknown until it is settled."""
        fates = self.fates[client]
        first = len(fates)
        fates.extend(bytes(count))
        self.marks[client].frombytes(bytes(4 * count))
        return range(first, first + count)

    def settle(self, client: int, numbers: range, fate: Fate, bad: Iterable[int] = ()) -> None:
        """Write down what became of these reports; the `bad` ones among them must not be stored, whatever it was."""
        self.fates[client][numbers.start : numbers.stop] = bytes((fate,)) * len(numbers)
        for number in bad:
            self.fates[client][number] = Fate.REJECTED

    def report_id(self, client: int, number: int) -> str:
        return f"{self.run}-{client}-{number}"

    def find(self, report_id: str) -> tuple[int, int] | None:
        """Client and sequence number of an id that this run has given out; None for any other."""
        run, _, rest = report_id.partition("-")
        client, _, number = rest.partition("-")
        if run != self.run or not (client.isdecimal() and number.isdecimal()):
            return None
        place = int(client), int(number)
        if place[0] >= len(self.fates) or place[1] >= len(self.fates[place[0]]):
            return None
        return place if self.report_id(*place) == report_id else None
