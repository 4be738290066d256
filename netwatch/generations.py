r"""The Gunicorns of one server: the one that serves, while the server reloads its successor, and those that drain.

A reload never touches what serves before all of its successor's workers do, on the same listening socket:

==========  ==========================================  ====================================================
phase       waits for                                   then
==========  ==========================================  ====================================================
checking    a child's word on the settings as they are  bad: the reload failed; good: start the successor
starting    the word of each of its workers             failed: drain it; good: drain the one that served
draining    that one's end, or its idle connections'    done; requests that it still answers do not hold it up
==========  ==========================================  ====================================================
"""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable
from typing import Any, Final

from netwatch import log, process
from netwatch.child import Child, Say
from netwatch.errors import StartError
from netwatch.metrics import table
from netwatch.metrics.board import Meter
from netwatch.settings import Settings, reloaded

DRAIN_GRACE_S: Final = 6.0
"""A drain that takes this much longer than it may is ended with SIGKILL."""
_CHECK_S: Final = 5.0
_START_S: Final = 60.0
_IDLE_S: Final = 2.0
"""Workers that drain take no connection any more, and have closed their idle ones, after this long."""
_MOST_RETIRED: Final = 3
"""Of those that drain, the oldest is hurried when there are more."""
_HURRY: Final = signal.SIGQUIT
"""Tells a Gunicorn that drains to end within 2 s."""
_NO_PROCESS: Final = StartError(
    "No process could be started for it: free memory, or raise the limits; the log says more."
)


class Generations:
    """``load`` reads the settings anew, ``main`` is Gunicorn for some, ``on_outcome`` hears how each reload went.

    Starts and deaths are counted in ``meter``.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Settings],
        main: Callable[[Settings, Say], None],
        on_outcome: Callable[[StartError | None], None],
        meter: Meter,
    ) -> None:
        self.settings = settings
        """Those that are in use."""
        self.is_serving = False
        """Whether a worker has ever served."""
        self._main = main
        self._on_outcome = on_outcome
        self._meter = meter
        self._current = self._gunicorn(settings)
        self._check = Child("check", functools.partial(_be_check, load))
        self._successor = self._current
        self._retired: list[Child] = []
        self._is_stopping = False
        # of the reload that is under way
        self._phase = ""
        self._began_at_s = 0.0
        self._done_at_s = float("inf")
        self._next_settings = settings
        self._changed: list[str] = []
        self._serving_total = 0

    def _gunicorn(self, settings: Settings) -> Child:
        return Child("gunicorn", functools.partial(self._main, settings))

    def _start(self, gunicorn: Child) -> bool:
        self._meter.add(table.STARTS, labels=(gunicorn.name,))
        return gunicorn.start()

    @property
    def is_reloading(self) -> bool:
        return bool(self._phase) or self._check.is_running

    def running(self) -> list[Child]:
        """The processes that there are."""
        children = dict.fromkeys((self._current, self._successor, self._check, *self._retired))
        return [child for child in children if child.is_running]

    def due_s(self) -> float:
        """When :meth:`tend` has something to do at the latest, if nothing happens (monotonic)."""
        starts = [] if self._is_stopping or self._current.is_running else [self._current.start_at_s]
        return min([self._done_at_s, *starts, *(child.kill_at_s for child in self.running())])

    def tend(self, now_s: float, *, may_start: bool) -> None:
        """Start, kill and conclude what is due."""
        if not self._is_stopping and not self._current.is_running and may_start and now_s >= self._current.start_at_s:
            self._start(self._current)
        for child in self.running():
            if now_s >= child.kill_at_s:
                log.error("killed", child=child.name)
                child.signal(signal.SIGKILL)
                child.kill_at_s = float("inf")
        if now_s >= self._done_at_s:
            self._conclude(None)

    def reload(self) -> None:
        """Begin a reload: read the settings anew, in a child, so that nothing that it meets there harms the server."""
        self._phase = "checking"
        self._began_at_s = time.monotonic()
        log.info("reload_started")
        if self._check.start():
            self._check.kill_at_s = self._began_at_s + _CHECK_S
        else:
            self._conclude(_NO_PROCESS)

    def hear(self, child: Child, word: Any) -> None:
        """A child has said ``word``; None is its last."""
        if word is None or self._is_stopping:
            return
        if child is self._check:
            if isinstance(word, Settings):
                self._start_successor(word)
            else:
                self._conclude(word)
        elif child is self._current:
            self.is_serving = True
        elif child is self._successor:
            self._serving_total += 1
            if self._serving_total == self._next_settings.workers:
                self._switch()

    def _start_successor(self, settings: Settings) -> None:
        self._phase = "starting"
        self._next_settings, self._changed, waiting = reloaded(self.settings, settings)
        if waiting:
            log.warning("settings_wait_for_restart", settings=waiting)
        self._serving_total = 0
        self._successor = self._gunicorn(self._next_settings)
        if self._start(self._successor):
            self._successor.kill_at_s = time.monotonic() + _START_S
        else:
            self._conclude(_NO_PROCESS)

    def _switch(self) -> None:
        self._phase = "draining"
        predecessor, patience_s = self._current, self.settings.body_timeout_s
        self._current, self.settings = self._successor, self._next_settings
        self._current.kill_at_s = float("inf")
        now_s = time.monotonic()
        self._done_at_s = now_s + _IDLE_S
        if predecessor.is_running:
            predecessor.kill_at_s = now_s + patience_s + DRAIN_GRACE_S
            predecessor.signal(process.BE_PATIENT)
            predecessor.signal(signal.SIGTERM)
            self._retired.append(predecessor)
        for child in self._retired[:-_MOST_RETIRED]:
            child.signal(_HURRY)

    def _conclude(self, error: StartError | None) -> None:
        self._phase = ""
        self._done_at_s = float("inf")
        if error:
            log.error("reload_failed", error=str(error))
        else:
            log.info("reloaded", changed=self._changed, took_s=round(time.monotonic() - self._began_at_s, 3))
        self._on_outcome(error)

    def on_death(self, child: Child, code: int) -> None:
        """``child`` has been reaped."""
        if self._is_stopping:
            return
        if child is self._check:
            if self._phase == "checking":
                self._conclude(StartError(f"The settings could not be read within {_CHECK_S:.0f} s ({code})."))
        elif child in self._retired:
            if child is self._retired[-1]:  # the last that served: nobody uses the old settings any more
                self._done_at_s = min(self._done_at_s, time.monotonic())
            self._retired.remove(child)
        elif child is self._current:
            self._meter.add(table.DEATHS, labels=(child.name,))
            log.warning("child_died", child=child.name, exit_code=code)
        else:
            self._conclude(StartError(f"The new workers could not be started ({code}); the log says why."))

    def stop(self, kill_at_s: float) -> None:
        """Drain all of them, whatever they are doing; what is left is killed then."""
        self._is_stopping = True
        for child in self.running():
            child.kill_at_s = min(child.kill_at_s, kill_at_s)
            child.signal(_HURRY if child in self._retired else signal.SIGTERM)


def _be_check(load: Callable[[], Settings], say: Say) -> None:
    process.set_title("check")
    try:
        say(load())
    except StartError as error:
        say(error)
