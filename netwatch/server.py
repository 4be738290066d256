"""The supervisor: opens the sockets, starts the writer and Gunicorn, restarts what dies, stops the writer last.

Its children are siblings, so that no worker's end can reach the writer; when it dies, SIGKILL included, the kernel
tells them and they drain.
"""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import mmap
import multiprocessing.connection
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from netwatch import listen, log, process, writer
from netwatch.child import Child, Say
from netwatch.errors import StartError
from netwatch.generations import DRAIN_GRACE_S, Generations
from netwatch.metrics import table
from netwatch.metrics.board import Board
from netwatch.notify import Systemd
from netwatch.reload import SOCKET_NAME, Askers
from netwatch.settings import Settings
from netwatch.storage.files import file_system, open_data_directory
from netwatch.storage.layout import new_instance
from netwatch.storage.store import KEEP_LEFTOVER_S

_WRITER_ALIVE_S: Final = 120.0
"""The watchdog is not fed when the writer has shown no life for so long; a slow disk is no reason to restart."""
_WRONG_USAGE: Final = 2
"""The exit code of a child whose settings cannot work."""
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_UNSAFE_FILE_SYSTEMS: Final = {
    "tmpfs": "it is memory, and gone when the machine is",
    "ramfs": "it is memory, and gone when the machine is",
    "overlay": "it is gone with its container",
    "nfs": "it cannot promise what fdatasync returns, nor locks",
    "nfs4": "it cannot promise what fdatasync returns, nor locks",
    "cifs": "it cannot promise what fdatasync returns, nor locks",
    "fuse": "what fdatasync means there is not known",
}


class Supervisor:
    r"""Runs one server from its start to its end.

    What happens when a child dies, by phase (a child killed by a signal has a negative code):

    ========  ======================  ====================================================================
    phase     writer                  Gunicorn
    ========  ======================  ====================================================================
    starting  code > 0: give up       code > 0: give up
    \         else: start it again    else: start it again
    serving   start it again          start it again
    draining  start it again until    tell the writer to drain, once it has recovered what is left
    \         it was told to drain
    ========  ======================  ====================================================================

    A reload starts a second Gunicorn beside the first: see :mod:`netwatch.generations`.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Settings],
        *,
        http: socket.socket,
        admin: socket.socket | None,
        queue: socket.socket,
        askers: Askers,
        systemd: Systemd,
        root: int,
    ) -> None:
        self._settings = settings
        self._admin = admin
        self._board = Board()
        self._http = http
        self._queue = queue
        self._askers = askers
        self._systemd = systemd
        self._root = root
        self._is_tls = settings.tls_certificate is not None
        self._address = listen.url(http, is_tls=self._is_tls)
        self._writer = Child("writer", self._be_writer)
        self._generations = Generations(settings, load, self._be_gunicorn, askers.answer, self._board.supervisor)
        self._instance = ""
        self._deaths: dict[str, float] = {}
        """When each of our writers died, by its instance, for as long as the next ones need to know."""
        self._writer_alive = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("d")
        """Its first is when the writer last showed life (monotonic); the writer writes it."""
        self._counted = (0, time.monotonic())
        """How many reports were stored when it was last looked at, and when that was."""
        self._has_terminal = os.isatty(0)
        self._is_writer_ready = False
        self._is_linked = False
        self._is_serving = False
        self._is_stop_due = False
        self._is_reload_due = False
        self._is_draining = False
        self._is_done = False
        self._kill_at_s = float("inf")
        self._exit_code = 0

    def run(self) -> int:
        """Serve until a signal, then drain. Returns the exit code: 0 when nothing had to be left behind."""
        wakeup, signalled = os.pipe()
        os.set_blocking(wakeup, False)
        os.set_blocking(signalled, False)
        signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            signal.signal(number, lambda *_: self._on_stop())
        signal.signal(signal.SIGHUP, lambda *_: self._on_hangup())
        signal.signal(signal.SIGUSR1, lambda *_: self._writer.signal(signal.SIGUSR1))
        while not self._is_done:
            self._tell()  # that it is ready comes before that it reloads
            self._do_what_is_due(time.monotonic())
            self._tell()
            self._wait(wakeup)
        log.info("server_stopped", exit_code=self._exit_code)
        return self._exit_code

    def _do_what_is_due(self, now_s: float) -> None:
        if self._is_stop_due:
            self._is_stop_due = False
            self._drain()
        if not self._writer.is_running and (self._is_draining or now_s >= self._writer.start_at_s):
            self._instance = new_instance()
            self._writer_alive[0] = now_s
            self._board.supervisor.add(table.STARTS, labels=("writer",))
            self._writer.start()
            importlib.import_module("netwatch.http.worker")  # while the writer starts; so all Gunicorns run this code
        self._generations.tend(now_s, may_start=self._is_writer_ready)
        if self._is_draining:
            if self._is_writer_ready and not self._generations.running():
                self._writer.signal(signal.SIGTERM)
            if now_s >= self._kill_at_s:
                self._exit_code = 1
                self._kill_at_s = float("inf")
                log.error("drain_cut_off", writer=self._writer.is_running)
                self._writer.signal(signal.SIGKILL)
        elif (
            (self._is_reload_due or self._askers.are_waiting)
            and self._is_serving
            and not self._generations.is_reloading
        ):
            self._is_reload_due = False
            self._askers.begin()
            self._generations.reload()

    def _tell(self) -> None:
        self._systemd.tell(self._state(), self._status, is_alive=self._is_alive(time.monotonic()))

    def _state(self) -> str:
        if self._is_draining:
            return "STOPPING"
        if not self._is_serving:
            return "starting"
        return "RELOADING" if self._generations.is_reloading else "READY"

    def _status(self) -> str:
        """What `systemctl status` shows: short, and in figures."""
        if self._is_draining:
            return "Draining: answering what was taken, then sealing"
        if not self._is_serving:
            return "Serving once the writer has recovered what was left"
        stored_total = sum(terms[table.TERMS.index(table.STORED)] for terms in self._board.read().terms.values())
        now_s, (before_total, before_s) = time.monotonic(), self._counted
        self._counted = stored_total, now_s
        rate = (stored_total - before_total) / max(now_s - before_s, 0.001)
        return (
            f"Serving on {self._address}: {self._generations.settings.workers} workers, {rate:.0f} reports/s, "
            f"{stored_total} stored, {self._writer.starts_total - 1} writer restarts"
        )

    def _is_alive(self, now_s: float) -> bool:
        """Whether a watchdog has no reason to start all anew."""
        return now_s - self._writer_alive[0] < _WRITER_ALIVE_S

    def _wait(self, wakeup: int) -> None:
        """Wait for a child's death or news, a signal, an asker, or the time to do something; take what came."""
        children = [child for child in (self._writer, *self._generations.running()) if child.is_running]
        due_s = min(self._kill_at_s, self._generations.due_s())
        if not self._writer.is_running:
            due_s = min(due_s, self._writer.start_at_s)
        if self._systemd.renew_s:
            due_s = min(due_s, time.monotonic() + self._systemd.renew_s)
        timeout_s = None if due_s == float("inf") else max(due_s - time.monotonic(), 0.01)
        sources = {source: child for child in children for source in (child.news, child.sentinel) if source is not None}
        ready = multiprocessing.connection.wait([wakeup, self._askers.fileno(), *sources], timeout_s)
        with contextlib.suppress(BlockingIOError):
            os.read(wakeup, 4096)
        for source in ready:
            if isinstance(source, Connection):
                self._hear(sources[source])
        for source in ready:
            if source in sources and not isinstance(source, Connection):
                self._on_death(sources[source])
        if self._askers.fileno() in ready:
            self._askers.accept()

    def _hear(self, child: Child) -> None:
        word = child.hear()
        if child is not self._writer:
            self._generations.hear(child, word)
        elif word == "recovered":
            self._is_writer_ready = True
        elif word == "linked":
            self._is_linked = True
        if self._is_linked and self._generations.is_serving and not self._is_serving and not self._is_draining:
            self._is_serving = True
            data_dir = self._settings.data_dir.absolute()
            admin = {"admin_address": listen.url(self._admin, is_tls=self._is_tls)} if self._admin else {}
            log.info("server_started", address=self._address, data_dir=str(data_dir), **admin)
            with contextlib.suppress(OSError):  # a terminal that was closed just now ends no server
                os.write(1, f"netwatch: listening on {self._address}, writing to {data_dir}\n".encode())

    def _on_death(self, child: Child) -> None:
        code = child.reap()
        if child is self._writer:
            now_s = time.monotonic()
            self._is_writer_ready = False
            self._deaths[self._instance] = now_s
            self._deaths = {key: at_s for key, at_s in self._deaths.items() if at_s > now_s - KEEP_LEFTOVER_S}
        if self._is_draining:
            was_told = child is self._writer and not self._generations.running()
            if was_told and (code >= 0 or self._exit_code):
                self._exit_code = self._exit_code or int(code != 0)
                self._is_done = True
        elif not self._is_serving and code > 0:
            self._exit_code = code if code == _WRONG_USAGE else 1
            self._drain()
            self._is_done = child is self._writer
        elif child is self._writer:
            self._board.supervisor.add(table.DEATHS, labels=("writer",))
            log.warning("child_died", child=child.name, exit_code=code)
        if child is not self._writer:
            self._generations.on_death(child, code)

    def _on_stop(self) -> None:
        """Drain, but not here: a signal comes in the middle of anything, such as the start of a child."""
        self._is_stop_due = True

    def _on_hangup(self) -> None:
        """Reload; but stop where the signal says that the terminal is gone that this was started in."""
        if self._has_terminal and not os.isatty(0):
            self._on_stop()
        self._is_reload_due = True

    def _drain(self) -> None:
        """Close the listening socket first: held open, it would keep new clients waiting and then reset them.

        Unless systemd holds it too: then they wait for the next server.
        """
        if not self._is_draining:
            self._is_draining = True
            self._kill_at_s = time.monotonic() + self._settings.drain_timeout_s + DRAIN_GRACE_S
            log.info("draining")
        self._close_listeners()
        self._generations.stop(self._kill_at_s)
        self._askers.refuse()

    def _close_listeners(self) -> None:
        self._http.close()
        if self._admin:
            self._admin.close()

    def _be_writer(self, say: Say) -> None:
        supervisor_pid = os.getppid()
        self._close_listeners()

        def show_life() -> None:
            self._writer_alive[0] = time.monotonic()

        is_clean = writer.run(
            self._settings,
            self._root,
            self._queue,
            say,
            self._instance,
            self._deaths,
            meter=self._board.writer,
            on_beat=show_life,
        )
        if os.getppid() != supervisor_pid:  # it was killed, so nobody else tidies up
            shutil.rmtree(os.path.dirname(self._queue.getsockname()), ignore_errors=True)
        sys.exit(0 if is_clean else 1)

    def _be_gunicorn(self, settings: Settings, say: Say) -> None:
        from netwatch.http import worker

        path = self._queue.getsockname()
        self._queue.close()  # or its workers would wait for ever for a writer that nobody starts
        os.close(self._root)
        admin_fd = self._admin.detach() if self._admin else None
        worker.run(settings, self._http.detach(), path, self._board, say, admin_fd)


def serve(settings: Settings, load: Callable[[], Settings]) -> int:
    """Run the server until it is told to stop; the exit code. ``load`` reads the settings anew, for a reload.

    Raises :class:`StartError`.
    """
    log.configure(settings.log_format)
    process.set_title("supervisor")
    os.umask(0o027)
    with contextlib.ExitStack() as stack:
        systemd = stack.enter_context(contextlib.closing(Systemd(os.environ)))
        passed = listen.passed(os.environ)
        root = _open_root(settings.data_dir)
        stack.callback(os.close, root)
        http = stack.enter_context(passed.get("http") or listen.listen(settings.bind))
        admin = passed.get("admin")
        if admin and not settings.admin_bind:
            raise StartError(
                "systemd passes a socket named admin: set admin_bind too, or give its socket unit another name.",
                2,
            )
        if settings.admin_bind and not admin:
            admin = listen.listen(settings.admin_bind, "--admin-bind")
        if admin:
            stack.enter_context(admin)
        address = listen.url(http, is_tls=settings.tls_certificate is not None)
        if "http" in passed:
            log.info("socket_passed", address=address)
        if not (settings.tokens or ipaddress.ip_address(http.getsockname()[0]).is_loopback):
            log.warning("everybody_may_post", address=address, advice="set tokens, or listen on loopback only")
        directory = stack.enter_context(listen.private_directory())
        queue = stack.enter_context(listen.open_unix(f"{directory}/queue.sock"))
        asking = stack.enter_context(listen.open_unix(f"{directory}/{SOCKET_NAME}"))
        supervisor = Supervisor(
            settings, load, http=http, admin=admin, queue=queue, askers=Askers(asking), systemd=systemd, root=root
        )
        try:
            return supervisor.run()
        except Exception as error:
            log.error("crashed", child="supervisor", error=repr(error), traceback=traceback.format_exc()[-1000:])
            os._exit(1)  # the children drain once it is gone; an orderly exit would wait for them, and they for it


def _open_root(data_dir: Path) -> int:
    try:
        root = open_data_directory(data_dir)
        kind = file_system(data_dir)
    except OSError as error:
        reason = f"Cannot use the data directory {data_dir}: {error.strerror} ({error.filename})."
        raise StartError(f"{reason} Give the server a directory that it may write to (--data-dir).") from None
    if why := _UNSAFE_FILE_SYSTEMS.get(kind.partition(".")[0]):
        log.warning("unsafe_file_system", data_dir=str(data_dir.absolute()), file_system=kind, why=why)
    return root
