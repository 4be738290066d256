"""Why the queue is our own: what ``multiprocessing.Queue`` does to a killed producer's item, and to all the others'.

If CPython mends it these tests fail and say so: then the reason for ``netwatch/queue.py`` has to be thought over.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Final

_spawn = multiprocessing.get_context("spawn")
_SMALL: Final = b"small"
_LARGER_THAN_A_PIPE: Final = b"x" * (4 * 1024 * 1024)
_DEADLINE_S: Final = 20.0
_PATIENCE_S: Final = 0.7
"""For what takes a whole queue some milliseconds, as the test sees first."""
_MENDED: Final = "multiprocessing.Queue was mended: "


def _produce(queue: Queue[bytes], told: Connection) -> None:
    while item := told.recv():
        queue.put(item)
        told.send("put() has returned")


def _consume(queue: Queue[bytes], told: Connection) -> None:
    while told.recv():
        told.send(len(queue.get(timeout=_PATIENCE_S)))


class _Actor:
    """A process at one end of the queue, started before anything is measured, that does what it is told."""

    def __init__(self, main: Callable[[Queue[bytes], Connection], None], queue: Queue[bytes]) -> None:
        self._ours, theirs = _spawn.Pipe()
        self._process: BaseProcess = _spawn.Process(target=main, args=(queue, theirs))
        self._process.start()
        theirs.close()

    def tell(self, word: bytes) -> None:
        """Have it put ``word``, or take something; b"" ends it."""
        self._ours.send(word)

    def says(self, timeout_s: float = _DEADLINE_S) -> object:
        """What it says next; None if it says nothing in time."""
        try:
            return self._ours.recv() if self._ours.poll(timeout_s) else None
        except EOFError:
            return "it has ended"

    def ends(self) -> bool:
        """Whether it ends in time."""
        self._process.join(_PATIENCE_S)
        return not self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        self.kill()
        self._ours.close()


@contextlib.contextmanager
def _actors(queue: Queue[bytes], *mains: Callable[[Queue[bytes], Connection], None]) -> Iterator[list[_Actor]]:
    actors = [_Actor(main, queue) for main in mains]
    try:
        yield actors
    finally:
        for actor in actors:
            actor.close()
        queue.close()


def test_producer_killed_in_put_stops_all_others() -> None:
    queue: Queue[bytes] = _spawn.Queue()
    with _actors(queue, _produce, _produce, _consume) as (killed, other, consumer):
        for producer in (killed, other):  # it works until somebody is killed
            producer.tell(_SMALL)
            assert producer.says() == "put() has returned"
            consumer.tell(b"get")
            assert consumer.says() == len(_SMALL)
        killed.tell(_LARGER_THAN_A_PIPE)
        assert killed.says(), _MENDED + "put() no longer returns before its item has left the process"
        _wait_until(lambda: not queue.empty())  # it has begun to write, and cannot end before somebody reads
        killed.kill()
        other.tell(_SMALL)
        assert other.says() == "put() has returned"  # and yet nothing comes of it:
        consumer.tell(b"get")
        said = consumer.says(2 * _PATIENCE_S)
        assert said is None, _MENDED + f"the consumer goes on after a producer was killed in put() ({said})"
        other.tell(b"")
        assert not other.ends(), _MENDED + "the other producers go on after one was killed in put()"


def test_put_returns_before_anything_is_safe() -> None:
    queue: Queue[bytes] = _spawn.Queue()
    with _actors(queue, _produce) as (killed,):
        killed.tell(_SMALL)
        assert killed.says() == "put() has returned"
        assert queue.get(timeout=_DEADLINE_S) == _SMALL
        killed.tell(_LARGER_THAN_A_PIPE)  # nobody reads, so most of it cannot have left the process
        said = killed.says(4 * _PATIENCE_S)
        assert said == "put() has returned", _MENDED + "put() waits until its item has left the process"


def _wait_until(is_so: Callable[[], bool]) -> None:
    give_up_at_s = time.monotonic() + _DEADLINE_S
    while not is_so():
        assert time.monotonic() < give_up_at_s
        time.sleep(0.001)
