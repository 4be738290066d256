"""The supervisor: opens the sockets, starts the writer and Gunicorn, restarts what dies, stops the writer last.

Its children are siblings with sessions of their own, forked from it, so that they run the code that it runs even while
a new version is being installed; when it dies, SIGKILL included, the kernel tells them and they drain.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from netwatch import log, process, writer
from netwatch.errors import StartError
from netwatch.metrics import table
from netwatch.metrics.board import Board
from netwatch.settings import Settings, split_address
from netwatch.storage.files import file_system, open_data_directory
from netwatch.storage.layout import new_instance
from netwatch.storage.store import KEEP_LEFTOVER_S

_PORT_WAIT_S: Final = 10.0
_BACKLOG: Final = 2048
_FIRST_BACKOFF_S: Final = 0.05
_MAX_BACKOFF_S: Final = 5.0
_DRAIN_GRACE_S: Final = 6.0
"""A drain that takes this much longer than ``drain_timeout_s`` is ended with SIGKILL."""
_STEADY_S: Final = 0.5
"""A child that ran this long is started again at once when it dies; one that dies sooner, more and more rarely."""
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_UNSAFE_FILE_SYSTEMS: Final = {
    "tmpfs": "it is memory, and gone when the machine is",
    "ramfs": "it is memory, and gone when the machine is",
    "overlay": "it is gone with its container",
    "nfs": "it cannot promise what fdatasync returns, nor locks",
    "nfs4": "it cannot promise what fdatasync returns, nor locks",
    "cifs": "it cannot promise what fdatasync returns, nor locks",
    "fuse": "what fdatasync means there is not known",
}
_fork = multiprocessing.get_context("fork")


class _Child:
    """A child process that is started again when it dies."""

    def __init__(self, name: str, main: Callable[[Callable[[str], None]], None]) -> None:
        self.name = name
        self._main = main
        self._process: BaseProcess | None = None
        self._starts_total = 0
        self._started_at_s = 0.0
        self._backoff_s = _FIRST_BACKOFF_S
        self.start_at_s = 0.0
        self.news: Connection | None = None
        """What the child says of its progress."""

    def hear(self) -> str | None:
        """Its next word; None when it will say no more."""
        assert self.news
        try:
            word: str = self.news.recv()
        except EOFError:
            self.news.close()
            self.news = None
            return None
        return word

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def sentinel(self) -> int | None:
        return self._process.sentinel if self._process else None

    def start(self) -> None:
        """Fork it. Signals wait meanwhile, so that none meets a child with its parent's handlers."""
        self._starts_total += 1
        self.news, theirs = _fork.Pipe(duplex=False)
        parent_pid = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOP_SIGNALS, signal.SIGUSR1))
        try:
            self._process = _fork.Process(target=self._run, args=(parent_pid, theirs.send), name=self.name)
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_STOP_SIGNALS, signal.SIGUSR1))
        theirs.close()
        self._started_at_s = time.monotonic()

    def _run(self, parent_pid: int, notify: Callable[[str], None]) -> None:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (*_STOP_SIGNALS, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.follow(parent_pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_STOP_SIGNALS, signal.SIGUSR1))
        try:
            self._main(notify)
        except StartError as error:
            if self._starts_total == 1:  # an operator waits for it
                print(f"netwatch: {error}", file=sys.stderr, flush=True)
            else:
                log.error("start_failed", child=self.name, error=str(error))
            sys.exit(error.exit_code)

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
        if self.news:
            self.news.close()
            self.news = None
        now_s = time.monotonic()
        if now_s - self._started_at_s > _STEADY_S:
            self._backoff_s = _FIRST_BACKOFF_S
            self.start_at_s = now_s
        else:
            self.start_at_s = now_s + self._backoff_s
            self._backoff_s = min(self._backoff_s * 2, _MAX_BACKOFF_S)
        return code


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
    """

    def __init__(self, settings: Settings, http: socket.socket, queue: socket.socket, root: int) -> None:
        self._settings = settings
        self._board = Board()
        self._http = http
        self._queue = queue
        self._root = root
        self._address = _url(http, is_tls=settings.tls_certificate is not None)
        self._writer = _Child("writer", self._be_writer)
        self._gunicorn = _Child("gunicorn", self._be_gunicorn)
        self._instance = ""
        self._deaths: dict[str, float] = {}
        """When each of our writers died, by its instance, for as long as the next ones need to know."""
        self._is_writer_ready = False
        self._is_serving = False
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
            signal.signal(number, lambda *_: self._drain())
        signal.signal(signal.SIGUSR1, lambda *_: self._writer.signal(signal.SIGUSR1))
        while not self._is_done:
            self._start_what_is_due(time.monotonic())
            self._wait(wakeup)
        log.info("server_stopped", exit_code=self._exit_code)
        return self._exit_code

    def _start_what_is_due(self, now_s: float) -> None:
        if not self._writer.is_running and (self._is_draining or now_s >= self._writer.start_at_s):
            self._instance = new_instance()
            self._start(self._writer)
        if self._is_draining:
            if self._is_writer_ready and not self._gunicorn.is_running:
                self._writer.signal(signal.SIGTERM)
            if now_s >= self._kill_at_s:
                self._exit_code = 1
                log.error("drain_cut_off", gunicorn=self._gunicorn.is_running, writer=self._writer.is_running)
                self._gunicorn.signal(signal.SIGKILL)
                self._writer.signal(signal.SIGKILL)
        elif self._is_writer_ready and not self._gunicorn.is_running and now_s >= self._gunicorn.start_at_s:
            self._start(self._gunicorn)

    def _start(self, child: _Child) -> None:
        self._board.supervisor.add(table.STARTS, labels=(child.name,))
        child.start()

    def _wait(self, wakeup: int) -> None:
        """Wait for a child's death or news, a signal, or the time to start or kill one; take what came."""
        children = (self._writer, self._gunicorn)
        due_s = min([self._kill_at_s, *(child.start_at_s for child in children if not child.is_running)])
        timeout_s = None if due_s == float("inf") else max(due_s - time.monotonic(), 0.01)
        sources = {source: child for child in children for source in (child.news, child.sentinel) if source is not None}
        ready = multiprocessing.connection.wait([wakeup, *sources], timeout_s)
        with contextlib.suppress(BlockingIOError):
            os.read(wakeup, 4096)
        for source in ready:
            if isinstance(source, Connection):
                self._hear(sources[source])
        for source in ready:
            if source in sources and not isinstance(source, Connection):
                self._on_death(sources[source])

    def _hear(self, child: _Child) -> None:
        word = child.hear()
        if word == "recovered":
            self._is_writer_ready = True
        elif word == "linked" and not self._is_serving:
            self._is_serving = True
            data_dir = self._settings.data_dir.absolute()
            log.info("server_started", address=self._address, data_dir=str(data_dir))
            print(f"netwatch: listening on {self._address}, writing to {data_dir}", flush=True)

    def _on_death(self, child: _Child) -> None:
        code = child.reap()
        if child is self._writer:
            now_s = time.monotonic()
            self._is_writer_ready = False
            self._deaths[self._instance] = now_s
            self._deaths = {key: at_s for key, at_s in self._deaths.items() if at_s > now_s - KEEP_LEFTOVER_S}
        if self._is_draining:
            was_told = child is self._writer and not self._gunicorn.is_running
            if was_told and (code >= 0 or time.monotonic() >= self._kill_at_s):
                self._exit_code = self._exit_code or int(code != 0)
                self._is_done = True
        elif not self._is_serving and code > 0:
            self._exit_code = code
            self._drain()
            self._is_done = child is self._writer
        else:
            self._board.supervisor.add(table.DEATHS, labels=(child.name,))
            log.warning("child_died", child=child.name, exit_code=code)

    def _drain(self) -> None:
        """Close the listening socket first: held open, it would keep new clients waiting and then reset them."""
        if not self._is_draining:
            self._is_draining = True
            self._kill_at_s = time.monotonic() + self._settings.drain_timeout_s + _DRAIN_GRACE_S
            log.info("draining")
        self._http.close()
        self._gunicorn.signal(signal.SIGTERM)

    def _be_writer(self, notify: Callable[[str], None]) -> None:
        supervisor_pid = os.getppid()
        self._http.close()
        meter = self._board.writer
        is_clean = writer.run(self._settings, self._root, self._queue, notify, self._instance, self._deaths, meter)
        if os.getppid() != supervisor_pid:  # it was killed, so nobody else tidies up
            shutil.rmtree(os.path.dirname(self._queue.getsockname()), ignore_errors=True)
        sys.exit(0 if is_clean else 1)

    def _be_gunicorn(self, notify: Callable[[str], None]) -> None:
        from netwatch.http import worker

        path = self._queue.getsockname()
        self._queue.close()  # or its workers would wait for ever for a writer that nobody starts
        os.close(self._root)
        worker.run(self._settings, self._http.detach(), path, self._board)


def serve(settings: Settings) -> int:
    """Run the server until it is told to stop; the exit code. Raises :class:`StartError`."""
    process.set_title("supervisor")
    os.umask(0o027)
    with contextlib.ExitStack() as stack:
        root = _open_root(settings.data_dir)
        stack.callback(os.close, root)
        http = stack.enter_context(_listen(settings.bind))
        if not (settings.tokens or ipaddress.ip_address(http.getsockname()[0]).is_loopback):
            log.warning("everybody_may_post", bind=settings.bind, advice="set tokens, or listen on loopback only")
        queue = stack.enter_context(_open_queue())
        return Supervisor(settings, http, queue, root).run()


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


def _listen(bind: str) -> socket.socket:
    """The listening HTTP socket; a port that an old server still holds is waited for."""
    host, port = split_address(bind)
    give_up_at_s = time.monotonic() + _PORT_WAIT_S
    is_waiting = False
    while True:
        try:
            family, kind, _, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            http = socket.socket(family, kind)
            try:
                http.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                http.bind(address)
                http.listen(_BACKLOG)
            except OSError:
                http.close()
                raise
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > give_up_at_s:
                raise StartError(
                    f"Cannot listen on {bind}: {error.strerror}. Choose another address (--bind)."
                ) from None
            if not is_waiting:
                is_waiting = True
                log.warning("port_in_use", bind=bind, wait_s=_PORT_WAIT_S)
            time.sleep(0.05)
        else:
            return http


@contextlib.contextmanager
def _open_queue() -> Iterator[socket.socket]:
    """The socket that workers connect to, under a path that only this user can reach; it outlives each writer."""
    base = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or None
    try:
        directory = tempfile.mkdtemp(prefix="netwatch-", dir=base)
    except OSError as error:
        raise StartError(f"Cannot make a directory for the queue in {base}: {error.strerror}.") from None
    queue = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            queue.bind(f"{directory}/queue.sock")
            os.chmod(queue.getsockname(), 0o600)
            queue.listen(_BACKLOG)
        except OSError as error:
            raise StartError(f"Cannot make the queue's socket in {directory}: {error}.") from None
        yield queue
    finally:
        queue.close()
        shutil.rmtree(directory, ignore_errors=True)


def _url(http: socket.socket, *, is_tls: bool) -> str:
    host, port = http.getsockname()[:2]
    scheme = "https" if is_tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
