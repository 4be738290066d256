"""A child process of the supervisor: forked, with a session of its own, heard over a pipe, reaped, started again.

It is forked, so that it runs the code that its parent runs even while a new version is being installed. It is told when
its parent dies.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final

from netwatch import log, process
from netwatch.errors import StartError

_FIRST_BACKOFF_S: Final = 0.05
_MAX_BACKOFF_S: Final = 5.0
_STEADY_S: Final = 0.5
"""A child that ran this long is started again at once when it dies; one that dies sooner, more and more rarely."""
HANDLED_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1)
"""What the supervisor handles, and its children must not do as it does."""
_fork = multiprocessing.get_context("fork")

Say = Callable[[Any], None]
"""With it a child sends its parent a word, or anything else that can be pickled."""


class Child:
    """A child process that can be started again when it has died. ``main`` is what it does, its end the child's."""

    def __init__(self, name: str, main: Callable[[Say], None]) -> None:
        self.name = name
        self._main = main
        self._process: BaseProcess | None = None
        self._started_at_s = 0.0
        self._backoff_s = _FIRST_BACKOFF_S
        self.starts_total = 0
        self.start_at_s = 0.0
        """When it may be started again."""
        self.kill_at_s = float("inf")
        """When it is killed, if it still runs then."""
        self.news: Connection | None = None
        """What the child says of its progress."""

    def hear(self) -> Any:
        """Its next word; None when it will say no more."""
        assert self.news
        try:
            return self.news.recv()
        except (EOFError, OSError):  # it was killed, perhaps in the middle of a word
            self.news.close()
            self.news = None
            return None

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def sentinel(self) -> int | None:
        return self._process.sentinel if self._process else None

    def start(self) -> bool:
        """Fork it, unless the system has no process or descriptor left: then the next start waits for the backoff.

        Signals wait meanwhile, so that none meets a child with its parent's handlers.
        """
        self.starts_total += 1
        self._started_at_s = time.monotonic()
        parent_pid = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
        try:
            news, theirs = _fork.Pipe(duplex=False)
            with theirs:
                child = _fork.Process(target=self._run, args=(parent_pid, theirs.send), name=self.name)
                try:
                    child.start()
                except OSError:
                    news.close()
                    raise
        except OSError as error:
            log.error("start_failed", child=self.name, error=str(error))
            self._back_off()
            return False
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)
        self._process, self.news = child, news
        return True

    def _run(self, parent_pid: int, say: Say) -> None:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in HANDLED_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.follow(parent_pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)
        try:
            self._main(say)
        except StartError as error:
            if self.starts_total == 1:  # an operator waits for it
                log.fatal(error)
            else:
                log.error("start_failed", child=self.name, error=str(error))
            sys.exit(error.exit_code)
        except Exception as error:
            log.error("crashed", child=self.name, error=repr(error), traceback=traceback.format_exc()[-1000:])
            sys.exit(1)

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self._process and self._process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def reap(self) -> int:
        """Forget the dead process: its exit code, negative for a signal. The next start waits for the backoff."""
        assert self._process
        self._process.join()
        code = self._process.exitcode or 0
        self._process.close()
        self._process = None
        self.kill_at_s = float("inf")
        if self.news:
            self.news.close()
            self.news = None
        self._back_off()
        return code

    def _back_off(self) -> None:
        now_s = time.monotonic()
        if now_s - self._started_at_s > _STEADY_S:
            self._backoff_s = _FIRST_BACKOFF_S
            self.start_at_s = now_s
        else:
            self.start_at_s = now_s + self._backoff_s
            self._backoff_s = min(self._backoff_s * 2, _MAX_BACKOFF_S)
