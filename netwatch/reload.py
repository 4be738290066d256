"""``netwatch reload``: have a running server read its settings anew, and say how that went; both ends of the asking.

Who connects to the supervisor's socket asks for a reload, and reads an exit code and a sentence when it is over.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import re
import socket
import sys
from typing import Final

from netwatch.errors import StartError

SOCKET_NAME: Final = "reload.sock"
_DIRECTORY: Final = re.compile(r"/netwatch-([0-9]+)-[^/]*/[^/]*\Z")
_ANSWER_S: Final = 90.0
_DONE: Final = "The new settings are in use."
_GONE: Final = "The server has ended before it was done."


class Askers:
    """Who asks the supervisor for a reload on ``listener``."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._listener.setblocking(False)
        self._new: list[socket.socket] = []
        self._heard: list[socket.socket] = []

    def fileno(self) -> int:
        """Readable when somebody asks."""
        return self._listener.fileno()

    def accept(self) -> None:
        """Take who asks now: only a reload that begins later is for them."""
        with contextlib.suppress(OSError):
            self._new.append(self._listener.accept()[0])

    @property
    def are_waiting(self) -> bool:
        """Whether a reload should begin for somebody."""
        return bool(self._new)

    def begin(self) -> None:
        """A reload begins: those who have asked will hear of it."""
        self._heard += self._new
        self._new = []

    def answer(self, error: StartError | None) -> None:
        """It is over."""
        code, text = (error.exit_code, str(error)) if error else (0, _DONE)
        for asker in self._heard:
            with asker, contextlib.suppress(OSError):
                asker.setblocking(False)
                asker.send(f"{code}\n{text}".encode())
                asker.shutdown(socket.SHUT_RDWR)  # a child that was forked meanwhile holds it too
        self._heard = []

    def refuse(self) -> None:
        """The server stops: whoever asks now gets nothing."""
        self.begin()
        self.answer(StartError("The server is stopping."))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = (
        "Have the running server check its settings, and replace its workers with new ones that use them. Returns when "
        "the new workers serve; with bad settings the old ones go on, and the exit code is 2."
    )
    parser.add_argument("--pid", type=int, metavar="N", help="the supervisor's, where this user runs several servers")


def run(args: argparse.Namespace) -> int:
    """Run the command; the exit code. Raises :class:`StartError`."""
    from netwatch.listen import runtime_directory

    base = runtime_directory()
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(_ANSWER_S)
        try:
            server.connect(_find(base, args.pid))
            answer = b"".join(iter(lambda: server.recv(4096), b"")).decode()
        except OSError as error:
            raise StartError(f"The server gives no answer: {error}; its log says more.") from None
    code, _, text = (answer or f"1\n{_GONE}").partition("\n")
    print(f"netwatch: {text}", file=sys.stderr if int(code) else sys.stdout)
    return int(code)


def _find(base: str, pid: int | None) -> str:
    """The socket of the only server there is, or of the one whose supervisor is ``pid``."""
    found = {}
    for path in glob.glob(f"{glob.escape(base)}/netwatch-*/{SOCKET_NAME}"):
        match = _DIRECTORY.search(path)
        if not match or not _is_ours(path):
            continue
        owner = int(match[1])
        if pid in (None, owner) and _is_running(owner):  # what a killed one left is nobody's
            found[owner] = path
    if not found:
        raise StartError(
            f"No server{f' {pid}' if pid else ''} of this user has its socket in {base}: is it running? "
            "Under systemd: systemctl reload netwatch."
        )
    if len(found) > 1:
        raise StartError(f"Several servers run here: choose one with --pid ({', '.join(map(str, found))}).", 2)
    return next(iter(found.values()))


def _is_ours(path: str) -> bool:
    """Whether this user made the socket: where everybody may make one, another's could answer in a server's place."""
    try:
        return os.stat(path).st_uid == os.geteuid()
    except OSError:
        return False


def _is_running(pid: int) -> bool:
    """Whether there is such a process; under systemd it is not in our sight of /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # systemd gives each command a user namespace of its own (PrivateUsers=)
        return True
    return True
