"""What Gunicorn runs: its master, as a child of the supervisor, and the workers, each with its link to the writer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import math
import mmap
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Final, cast

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker as GunicornWorker
from uvicorn.config import Config
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

from netwatch import log, process
from netwatch.http.acceptor import Acceptor
from netwatch.http.app import create_admin_app, create_app, split_app
from netwatch.http.metrics import Counting
from netwatch.http.protocol import ANSWER_S, Protocol, protocol_settings
from netwatch.http.request_log import Refusals
from netwatch.metrics.board import Board, WorkerMeter
from netwatch.queue import Link
from netwatch.settings import Settings

_WORKER_TIMEOUT_S: Final = 30
_OTHERS_S: Final = 1.0
"""A worker takes connections when all are up, or after this long."""
_KILL_S: Final = 0.5
"""Gunicorn kills what is left this long after a worker should have ended."""
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class _Server(Server):
    """uvicorn's server, which takes its share of connections, and tells the last ones when it takes no more."""

    def __init__(
        self,
        config: Config,
        say: Callable[[str], None],
        patience_s: memoryview,
        connections_wanted: Callable[[], int],
        are_all_up: Callable[[], bool],
    ) -> None:
        super().__init__(config)
        self._say = say
        self._are_all_up = are_all_up
        self._patience_s = patience_s
        self._connections_wanted = connections_wanted

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(Arbiter.APP_LOAD_ERROR)
        await self._wait_for_others()
        config = self.config
        protocol = cast(type[Protocol], config.http_protocol_class)
        acceptors = [
            Acceptor(
                listener,
                functools.partial(protocol, config, self.server_state, self.lifespan.state),
                config.ssl,
                self._connections_wanted,
                handshake_timeout_s=protocol.header_timeout_s,
                max_handshakes=protocol.max_connections,
            )
            for listener in sockets or []
        ]
        self.servers = cast(Any, acceptors)
        self.started = True
        with contextlib.suppress(OSError):  # the supervisor is gone
            self._say("serving")

    async def _wait_for_others(self) -> None:
        """Clients that wait for the server come all at once, and keep their connections: the first would have all."""
        until_s = time.monotonic() + _OTHERS_S
        while not self._are_all_up() and time.monotonic() < until_s:  # noqa: ASYNC110 - no event comes from processes
            await asyncio.sleep(0.01)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.lifespan.state["draining"] = True  # a connection that was just accepted does not know yet
        if self._patience_s[0]:
            self.config.timeout_graceful_shutdown = self._patience_s[0]
        await super().shutdown(sockets)


class Worker(UvicornWorker):  # type: ignore[misc]  # uvicorn-worker has no types
    """uvicorn's worker class with our protocol and server."""

    board: Board
    say: Callable[[str], None]
    patience_s: memoryview
    """Its first, if it is not 0, is how long a drain may take instead; the master writes it, the workers share it."""
    up: memoryview
    """A byte for each worker of this master that was ever up; the workers write and share it."""

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        self.up[self.age % len(self.up)] = 1
        server = _Server(self.config, self.say, self.patience_s, self.board.connections_wanted, self._are_all_up)
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    def _are_all_up(self) -> bool:
        return bool(self.up.tobytes().count(1) >= self.cfg.workers)


class _LinkLifespan:
    """Opens the link when the worker's loop runs, and closes it when the last request was answered.

    Lets the protocol know in what it counts.
    """

    def __init__(self, link: Link, meter: WorkerMeter) -> None:
        self._link = link
        self._meter = meter

    async def process_startup(self, scope: dict[str, Any], _event: dict[str, Any]) -> None:
        gc.collect()
        gc.freeze()  # what is here by now stays: each later collection would look through all of it for nothing
        scope["state"]["counting"] = Counting(self._meter)
        self._link.open()

    async def process_shutdown(self, _scope: dict[str, Any], _event: dict[str, Any]) -> None:
        await self._link.close()


class _Gunicorn(BaseApplication):  # type: ignore[misc]  # Gunicorn has no types
    """Gunicorn with our settings instead of its files and flags."""

    def __init__(
        self, settings: Settings, listener_fd: int, queue_path: str, board: Board, admin_fd: int | None
    ) -> None:
        self._settings = settings
        self._board = board
        self._listener_fds = [listener_fd, *([] if admin_fd is None else [admin_fd])]
        self._admin_address = None if admin_fd is None else _address_of(admin_fd)
        self._queue_path = queue_path
        super().__init__()

    def load_config(self) -> None:
        values = {
            "bind": [f"fd://{fd}" for fd in self._listener_fds],
            "workers": self._settings.workers,
            "worker_class": f"{__name__}.Worker",
            "timeout": _WORKER_TIMEOUT_S,
            "graceful_timeout": math.ceil(self._settings.drain_timeout_s + ANSWER_S + _KILL_S),
            "control_socket_disable": True,
            "worker_tmp_dir": "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir(),
            "pre_fork": _name_master,
            "post_fork": _on_worker_start,
            "logconfig_dict": {
                "version": 1,
                "disable_existing_loggers": False,
                "handlers": {"stderr": {"class": "netwatch.log.Handler"}},
                "root": {"handlers": ["stderr"], "level": "WARNING"},
                "loggers": {
                    "gunicorn.error": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
                    "gunicorn.access": {"handlers": [], "propagate": False},
                },
            },
        }
        if self._settings.tls_certificate and self._settings.tls_key:
            values |= {"certfile": str(self._settings.tls_certificate), "keyfile": str(self._settings.tls_key)}
        for name, value in values.items():
            self.cfg.set(name, value)

    def be_patient(self) -> None:
        """Let the drain take as long as the body of a request may: after a reload, nobody waits for its end."""
        Worker.patience_s[0] = math.ceil(self._settings.body_timeout_s + ANSWER_S)
        self.cfg.set("graceful_timeout", math.ceil(Worker.patience_s[0] + _KILL_S))

    def load(self) -> Any:
        link = Link(
            self._queue_path, batch_bytes=self._settings.commit_bytes, ack_timeout_s=self._settings.ack_timeout_s
        )
        meter = self._board.claim()
        if meter.number is None:
            log.error("no_slot", advice="this worker is missing in the metrics; restart the server")
        refusals = Refusals()
        app = create_app(link, self._settings, self._board, meter, refusals, [_LinkLifespan(link, meter)])
        if not self._admin_address:
            return app
        return split_app(app, create_admin_app(link, self._settings, self._board, refusals), *self._admin_address)


def _address_of(fd: int) -> tuple[str, int]:
    with socket.socket(fileno=os.dup(fd)) as listener:
        host, port = listener.getsockname()[:2]
        return host, port


def _fork_without_losing_a_signal() -> None:
    """Have a signal that meets a worker before it listens to any end it; Gunicorn's handlers, inherited, lose it.

    That worker has taken no connection. Not ended, it would hold up a stop until Gunicorn kills it.
    """

    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)

    def reset() -> None:
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        unblock()

    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=reset)


def _name_master(_master: Arbiter, _worker: GunicornWorker) -> None:
    process.set_title("gunicorn")  # Gunicorn has named itself by now


def _on_worker_start(master: Arbiter, _worker: GunicornWorker) -> None:
    process.set_title("worker")
    process.follow(master.pid)
    process.be_killed_first()
    log.info("worker_started")


def run(
    settings: Settings,
    listener_fd: int,
    queue_path: str,
    board: Board,
    say: Callable[[str], None],
    admin_fd: int | None = None,
) -> None:
    """Be Gunicorn's master for the listening HTTP socket ``listener_fd`` until SIGTERM. Ends in SystemExit.

    Its workers count on ``board``, and each says "serving" once it takes connections. ``admin_fd`` is the listening
    socket of ``admin_bind``.
    """
    process.set_title("gunicorn")
    os.environ.pop("NOTIFY_SOCKET", None)  # it would say that it is ready before a worker is
    Worker.board = board
    Worker.say = staticmethod(say)
    Worker.up = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
    Worker.patience_s = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
    Worker.CONFIG_KWARGS = protocol_settings(settings)
    signal.set_wakeup_fd(-1)
    _fork_without_losing_a_signal()
    gunicorn = _Gunicorn(settings, listener_fd, queue_path, board, admin_fd)
    signal.signal(process.BE_PATIENT, lambda *_: gunicorn.be_patient())
    gunicorn.run()
