"""The listening sockets: HTTP's, opened here or passed by systemd, and the queue's, for the workers' links."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, MutableMapping
from typing import Final

from netwatch import log
from netwatch.errors import StartError
from netwatch.settings import split_address

BACKLOG: Final = 2048
_PORT_WAIT_S: Final = 10.0
_FIRST_PASSED_FD: Final = 3


def passed(environ: MutableMapping[str, str]) -> dict[str, socket.socket]:
    """The listening sockets that systemd passes (sd_listen_fds(3)), as ``http`` and ``admin``, which has that name.

    Its variables are taken out of ``environ``. Raises :class:`StartError`.
    """
    pid, count, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    sockets: dict[str, socket.socket] = {}
    for number, name in zip(range(int(count)), [*names.split(":"), *[""] * int(count)], strict=False):
        fd = _FIRST_PASSED_FD + number
        os.set_inheritable(fd, False)
        role = "admin" if name == "admin" else "http"
        if role in sockets:
            raise StartError(
                f"systemd passes two sockets for {role}: give the socket unit one ListenStream=, "
                "and one in a unit with FileDescriptorName=admin for metrics and health.",
                2,
            )
        sockets[role] = _listening(fd)
    return sockets


def _listening(fd: int) -> socket.socket:
    advice = "Give the socket unit a ListenStream= with an address and a port, and Accept=no."
    try:
        sock = socket.socket(fileno=fd)
        is_listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise StartError(f"What systemd passes is no socket: {error.strerror}. {advice}", 2) from None
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM or not is_listening:
        raise StartError(f"What systemd passes is no listening TCP socket. {advice}", 2)
    return sock


def listen(bind: str, flag: str = "--bind") -> socket.socket:
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
                http.listen(BACKLOG)
            except OSError:
                http.close()
                raise
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > give_up_at_s:
                raise StartError(
                    f"Cannot listen on {bind}: {error.strerror}. Choose another address ({flag})."
                ) from None
            if not is_waiting:
                is_waiting = True
                log.warning("port_in_use", bind=bind, wait_s=_PORT_WAIT_S)
            time.sleep(0.05)
        else:
            return http


@contextlib.contextmanager
def private_directory() -> Iterator[str]:
    """A directory for this server's Unix sockets, that only this user can reach; it goes at the end."""
    base = runtime_directory()
    try:
        directory = tempfile.mkdtemp(prefix=f"netwatch-{os.getpid()}-", dir=base)
    except OSError as error:
        raise StartError(f"Cannot make a directory for the queue in {base}: {error.strerror}.") from None
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def runtime_directory() -> str:
    """Where the private directories of servers stand."""
    return os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or tempfile.gettempdir()


def open_unix(path: str) -> socket.socket:
    """A listening socket for this user only."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        os.chmod(path, 0o600)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise StartError(f"Cannot make the socket {path}: {error}.") from None
    return sock


def url(http: socket.socket, *, is_tls: bool) -> str:
    """Where a client finds the socket."""
    host, port = http.getsockname()[:2]
    scheme = "https" if is_tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
