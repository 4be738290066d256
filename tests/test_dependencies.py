"""What we rest on of the dependencies, one test each, so that an upgrade that breaks it says so by its name."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import falcon.asgi
import httptools
import msgspec
import pytest
import uvicorn
import zstandard
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn_worker import UvicornWorker

# Gunicorn

GUNICORN = """
import os, signal, sys
import setproctitle
from gunicorn.app.base import BaseApplication
from uvicorn_worker import UvicornWorker

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

async def app(scope, receive, send):
    import asyncio
    if scope["type"] != "http":
        return
    say("asked", os.getpid())
    if scope["path"] == "/slow":
        await asyncio.sleep(2.0)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
    say("answered", os.getpid())

class Worker(UvicornWorker):
    pass

def on_starting(_):
    if "stranger" in sys.argv:
        child = os.fork()
        if child == 0:
            os._exit(3)
        say("stranger", child)

def pre_fork(_master, _worker):
    say("title", setproctitle.getproctitle())
    setproctitle.setproctitle("ours: master")

def post_fork(master, _worker):
    setproctitle.setproctitle("ours: worker")
    say("worker", os.getpid(), "of", master.pid)

class Alone(BaseApplication):
    def load_config(self):
        values = {"bind": "fd://" + sys.argv[1], "workers": 2, "worker_class": "__main__.Worker", "graceful_timeout": 3,
                  "control_socket_disable": True, "pre_fork": pre_fork, "post_fork": post_fork,
                  "on_starting": on_starting, "child_exit": lambda _, worker: say("gone", worker.pid),
                  "on_exit": lambda _: say("exit")}
        for name, value in values.items():
            self.cfg.set(name, value)

    def load(self):
        if "broken" in sys.argv:
            raise RuntimeError("broken")
        return app

if "unnotified" in sys.argv:
    os.environ.pop("NOTIFY_SOCKET")
Worker.CONFIG_KWARGS = {"loop": "uvloop", "http": "httptools", "lifespan": "off", "timeout_graceful_shutdown": 2.5}
sys.modules["__main__"].Worker = Worker
Alone().run()
"""


class Gunicorn:
    """Gunicorn on a socket that it inherits; it says what its hooks see."""

    def __init__(self, *words: str, **environ: str) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.socket.getsockname()
        fd = self.socket.fileno()
        self.process = subprocess.Popen(
            [sys.executable, "-c", GUNICORN, str(fd), *words],
            pass_fds=[fd],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | environ,
        )
        self.socket.close()
        self.said: list[str] = []
        self._part = b""

    def hear(self, word: str, count: int = 1) -> list[str]:
        """Wait until the word began `count` lines; those lines."""
        assert self.process.stdout
        deadline_s = time.monotonic() + 10
        while len(found := [line for line in self.said if line.startswith(word)]) < count:
            ready, _, _ = select.select([self.process.stdout], [], [], max(deadline_s - time.monotonic(), 0))
            assert ready, f"{word!r} did not come in {self.said}"
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"{word!r} did not come in {self.said}"
            *lines, self._part = (self._part + data).split(b"\n")
            self.said += [line.decode() for line in lines]
        return found

    def ask(self, path: str = "/") -> socket.socket:
        client = socket.create_connection(self.address, timeout=10)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return client

    def refuses(self) -> bool:
        try:
            socket.create_connection(self.address, timeout=1).close()
        except ConnectionRefusedError:
            return True
        return False

    @property
    def workers(self) -> list[int]:
        return [int(line.split()[1]) for line in self.hear("worker", 2)]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=10)
        return self.process.returncode


@pytest.fixture
def start() -> Iterator[Callable[..., Gunicorn]]:
    started: list[Gunicorn] = []

    def start(*words: str, **environ: str) -> Gunicorn:
        started.append(Gunicorn(*words, **environ))
        return started[-1]

    yield start
    for gunicorn in started:
        if gunicorn.process.poll() is None:
            workers = [int(line.split()[1]) for line in gunicorn.said if line.startswith("worker")]
            for pid in (gunicorn.process.pid, *workers):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        gunicorn.process.communicate(timeout=10)


def title_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode()


def test_gunicorn_serves_the_socket_that_it_inherits_and_stops_in_order(start: Callable[..., Gunicorn]) -> None:
    gunicorn = start()
    with gunicorn.ask() as client:
        assert client.recv(99).startswith(b"HTTP/1.1 200 OK")
    workers = gunicorn.workers
    slow = gunicorn.ask("/slow")
    gunicorn.hear("asked", 2)
    gunicorn.process.send_signal(signal.SIGTERM)
    # First no new client is taken, while the old one is still to be answered: master and workers close the socket.
    deadline_s = time.monotonic() + 10
    while not gunicorn.refuses():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    assert select.select([slow], [], [], 0)[0] == []
    with slow:
        assert slow.recv(99).startswith(b"HTTP/1.1 200 OK")
    gunicorn.hear("exit")
    assert gunicorn.process.wait(10) == 0
    for pid in workers:
        assert not Path(f"/proc/{pid}").exists()
    assert gunicorn.said[-1] == "exit"


def test_gunicorn_names_itself_before_pre_fork_and_not_again(start: Callable[..., Gunicorn]) -> None:
    gunicorn = start()
    workers = gunicorn.workers
    assert gunicorn.hear("title", 2)[0].startswith("title gunicorn: master")
    assert gunicorn.hear("title", 2)[1] == "title ours: master"
    with gunicorn.ask() as client:
        client.recv(99)
    assert title_of(gunicorn.process.pid) == "ours: master"
    assert [title_of(pid) for pid in workers] == ["ours: worker"] * 2


def test_gunicorn_replaces_a_worker_that_is_killed(start: Callable[..., Gunicorn]) -> None:
    gunicorn = start()
    (first, _) = gunicorn.workers
    os.kill(first, signal.SIGKILL)
    gunicorn.hear(f"gone {first}")
    assert len(gunicorn.hear("worker", 3)) == 3
    assert gunicorn.end() == 0


def test_gunicorn_reaps_a_child_it_does_not_know_and_goes_on(start: Callable[..., Gunicorn]) -> None:
    gunicorn = start("stranger")
    stranger = int(gunicorn.hear("stranger")[0].split()[1])
    os.kill(gunicorn.workers[0], signal.SIGKILL)  # makes it reap
    gunicorn.hear("worker", 3)
    assert not Path(f"/proc/{stranger}").exists()
    assert f"gone {stranger}" not in gunicorn.said
    assert gunicorn.end() == 0


def test_gunicorn_ends_with_a_code_when_no_worker_can_start(start: Callable[..., Gunicorn]) -> None:
    assert start("broken").process.wait(10) in (1, 3, 4)


@pytest.mark.parametrize("is_told", [True, False])
def test_gunicorn_notifies_systemd_only_by_the_variable_we_take_away(
    is_told: bool, start: Callable[..., Gunicorn], tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        gunicorn = start(*([] if is_told else ["unnotified"]), NOTIFY_SOCKET=str(tmp_path / "notify"))
        with gunicorn.ask() as client:
            client.recv(99)
        assert gunicorn.end() == 0
        systemd.setblocking(False)
        if is_told:  # before a worker is there, so we do without
            assert systemd.recv(999).startswith(b"READY=1")
        with pytest.raises(BlockingIOError):
            systemd.recv(999)


def test_the_worker_class_has_what_ours_overrides_to_run_its_own_server() -> None:
    source = inspect.getsource(UvicornWorker._serve)
    assert "self.config.app = self.wsgi" in source
    assert "server = Server(config=self.config)" in source
    assert "self._install_sigquit_handler()" in source
    assert "await server.serve(sockets=self.sockets)" in source
    for name in ("startup", "shutdown"):  # with the sockets alone
        assert list(inspect.signature(getattr(uvicorn.Server, name)).parameters) == ["self", "sockets"]


def test_the_worker_class_takes_uvicorns_settings_from_a_class_attribute() -> None:
    assert UvicornWorker.CONFIG_KWARGS == {"loop": "auto", "http": "auto"}


# uvicorn


def test_uvicorns_protocol_has_the_hooks_that_ours_overrides_and_calls() -> None:
    for hook in (
        *("connection_made", "connection_lost", "data_received", "eof_received", "shutdown", "pause_writing"),
        *("on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body", "on_message_complete"),
    ):
        assert callable(getattr(HttpToolsProtocol, hook))


def make_protocol() -> tuple[HttpToolsProtocol, uvicorn.Config]:
    async def app(_scope: object, _receive: object, _send: object) -> None: ...

    config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5, lifespan="off", ws="none")
    config.load()
    state: dict[str, Any] = {"known": 1}
    return HttpToolsProtocol(config, uvicorn.server.ServerState(), state), config


def test_uvicorns_protocol_has_the_attributes_that_ours_reads() -> None:
    async def scenario() -> None:
        protocol, config = make_protocol()
        assert protocol.app_state == {"known": 1}
        assert protocol.config is config
        assert protocol.config.timeout_graceful_shutdown == 5
        assert protocol.loop is asyncio.get_running_loop()
        assert vars(protocol)["cycle"] is None
        assert protocol.app is config.loaded_app
        assert protocol.connections is protocol.server_state.connections
        assert protocol.tasks is protocol.server_state.tasks
        assert isinstance(protocol.parser, httptools.HttpRequestParser)
        assert protocol.server_state.default_headers == []
        assert protocol.ws_protocol_class is None

    asyncio.run(scenario())


def test_uvicorn_gives_each_request_a_copy_of_the_state_when_it_begins() -> None:
    async def scenario() -> None:
        protocol, _ = make_protocol()
        protocol.on_message_begin()
        protocol.scope["state"]["ours"] = 1
        assert protocol.app_state == {"known": 1}
        assert protocol.scope["state"] == {"known": 1, "ours": 1}
        assert protocol.headers is protocol.scope["headers"]

    asyncio.run(scenario())


def test_uvicorn_says_what_it_read_of_a_request() -> None:
    async def scenario() -> None:
        protocol, _ = make_protocol()
        protocol.on_message_begin()
        protocol.on_url(b"/a")
        protocol.on_url(b"?b=c")
        protocol.on_header(b"Expect", b"100-continue")
        assert protocol.url == b"/a?b=c"
        assert protocol.headers == [(b"expect", b"100-continue")]
        assert protocol.expect_100_continue

    asyncio.run(scenario())


def test_uvicorns_flow_control_has_what_our_cycle_calls() -> None:
    for name in ("drain", "pause_reading", "resume_reading", "pause_writing", "resume_writing"):
        assert callable(getattr(FlowControl, name))
    assert STATUS_LINE[503] == b"HTTP/1.1 503 Service Unavailable\r\n"


class Recorder:
    """What httptools calls, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_message_begin(self) -> None:
        self.calls.append("begin")

    def on_headers_complete(self) -> None:
        self.calls.append("headers")

    def on_body(self, body: bytes) -> None:
        self.calls.append(body.decode())

    def on_message_complete(self) -> None:
        self.calls.append("complete")


def test_httptools_ends_a_request_that_offers_an_upgrade_at_its_header() -> None:
    recorder = Recorder()
    parser = httptools.HttpRequestParser(recorder)
    header = b"POST / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n"
    with pytest.raises(httptools.HttpParserUpgrade) as offer:
        parser.feed_data(header + b"hi")
    assert offer.value.args == (len(header),)
    assert parser.should_upgrade()
    assert (parser.get_method(), parser.get_http_version()) == (b"POST", "1.1")
    assert recorder.calls == ["begin", "headers", "complete"]


def test_httptools_says_that_a_chunked_body_is_complete_only_at_its_last_byte() -> None:
    sent = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    recorder = Recorder()
    parser = httptools.HttpRequestParser(recorder)
    for number, byte in enumerate(sent):
        assert "complete" not in recorder.calls, number
        parser.feed_data(bytes([byte]))
    assert recorder.calls == ["begin", "headers", "h", "i", "complete"]


# Falcon


@pytest.mark.parametrize("framing", [(b"content-length", b"10"), (b"transfer-encoding", b"chunked")])
def test_falcon_ends_a_cut_body_without_an_error(framing: tuple[bytes, bytes]) -> None:
    read: list[bytes] = []
    states: list[Any] = []

    class Reader:
        async def on_post(self, req: falcon.asgi.Request, _resp: object) -> None:
            read.append(await req.stream.read())
            states.append(req.scope["state"])

    app = falcon.asgi.App()
    app.add_route("/", Reader())
    events = [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]
    state: dict[str, Any] = {}

    async def receive() -> Any:
        return events.pop(0)

    async def send(_message: dict[str, Any]) -> None: ...

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/",
        "query_string": b"",
        "headers": [framing],
        "state": state,
    }
    asyncio.run(app(scope, receive, send))
    assert read == [b"half"]
    assert states[0] is state, "the state of the scope is the protocol's own"


# zstandard

LEVELS = [1, 3, 19]


def frame_of(parts: list[bytes], level: int = 1) -> list[bytes]:
    """What a compressor gives for each part when it flushes the block after each, and at last the frame's end."""
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj()
    flushed = [compressor.compress(part) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for part in parts]
    return [*flushed, compressor.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH)]


@pytest.mark.parametrize("level", LEVELS)
def test_zstandard_gives_back_each_flushed_block_when_it_is_fed(level: int) -> None:
    parts = [b"one\n", b"two\n" * 1000, os.urandom(5000), b"four\n"]
    *flushed, end = frame_of(parts, level)
    reader = zstandard.ZstdDecompressor().decompressobj()
    assert [reader.decompress(block) for block in flushed] == parts
    assert reader.eof is False
    assert reader.decompress(end) == b""
    assert (reader.eof, reader.unused_data) == (True, b"")


def test_zstandard_takes_zeros_for_empty_blocks() -> None:
    (flushed, _) = frame_of([b"one\n"])
    reader = zstandard.ZstdDecompressor().decompressobj()
    assert reader.decompress(flushed) == b"one\n"
    assert reader.decompress(b"\0" * 300) == b""
    assert not reader.eof


def test_zstandard_checks_the_frames_checksum() -> None:
    frame = b"".join(frame_of([b"one\n"]))
    reader = zstandard.ZstdDecompressor().decompressobj()
    with pytest.raises(zstandard.ZstdError, match="checksum"):
        reader.decompress(frame[:-1] + bytes([frame[-1] ^ 1]))


def test_zstandard_knows_the_size_of_a_frames_header() -> None:
    (flushed, _) = frame_of([b"one\n"])
    size = zstandard.frame_header_size(flushed[:18])
    reader = zstandard.ZstdDecompressor().decompressobj()
    assert reader.decompress(flushed[:size]) == b""
    assert reader.decompress(flushed[size:]) == b"one\n"
    with pytest.raises(zstandard.ZstdError):
        zstandard.frame_header_size(flushed[:4])


def test_zstandard_refuses_a_window_over_the_limit() -> None:
    large = zstandard.ZstdCompressionParameters(window_log=27, write_checksum=True)
    frame = zstandard.ZstdCompressor(compression_params=large).compressobj()
    data = frame.compress(b"x") + frame.flush()
    with pytest.raises(zstandard.ZstdError, match="memory"):
        zstandard.ZstdDecompressor(max_window_size=32 * 1024 * 1024).decompressobj().decompress(data)


# msgspec


class Known(msgspec.Struct):
    a: int = 0


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_msgspec_refuses_numbers_beyond_a_double(number: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(number)


@pytest.mark.parametrize("text", [r'"\ud800"', r'"\udc00\ud800"', "NaN", "Infinity", "\ufeff1", "1 2", '"\n"'])
def test_msgspec_refuses_what_is_no_strict_json(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(text.encode())


def test_msgspec_refuses_invalid_utf8_in_what_it_decodes_with_another_error() -> None:
    with pytest.raises(UnicodeDecodeError):
        msgspec.json.decode(b'"\xff"')


def test_msgspec_lets_invalid_utf8_through_in_what_it_skips() -> None:
    # Hence the slow way for every report with members that are not ours.
    assert msgspec.json.decode(b'{"a":1,"b":"\xff","\xff":1}', type=Known) == Known(1)
    assert bytes(msgspec.json.decode(b'["\xff"]', type=list[msgspec.Raw])[0]) == b'"\xff"'


@pytest.mark.parametrize("text", [b"1e999", b'{"a":1,"a":2}', b'"\xff"'])
def test_msgspecs_raw_lets_through_what_must_not_be_stored(text: bytes) -> None:
    assert bytes(msgspec.json.decode(b"[%b]" % text, type=list[msgspec.Raw])[0]) == text


def test_msgspec_refuses_unknown_members_and_nothing_else_where_it_is_told_to() -> None:
    class Strict(Known, forbid_unknown_fields=True):
        pass

    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"a":1,"b":"\xff"}', type=Strict)


def test_msgspec_takes_the_last_of_duplicate_members() -> None:
    assert msgspec.json.decode(b'{"a":1,"a":2}') == {"a": 2}
    assert msgspec.json.decode(b'{"a":1,"a":2}', type=Known) == Known(2)


@pytest.mark.parametrize("kind", [Any, list[msgspec.Raw], Known])
def test_msgspec_raises_recursion_error_for_deep_nesting(kind: Any) -> None:
    text = b'{"b":' * 100_000 if kind is Known else b"[" * 100_000
    with pytest.raises(RecursionError):
        msgspec.json.decode(text, type=kind)


def test_msgspec_keeps_long_integers_and_makes_a_float_of_one_where_it_must() -> None:
    assert msgspec.json.decode(b"123456789012345678901234567890") == 123456789012345678901234567890
    assert msgspec.json.decode(b"1", type=float) == 1.0
    assert msgspec.json.encode(1.0) == b"1.0"


def test_msgspec_encodes_one_line_of_utf8_without_white_space() -> None:
    encoded = msgspec.json.encode({"é": ["\n\r\0\x1f", "\u2028", 1, 1.5, None, True]})
    assert encoded == '{"é":["\\n\\r\\u0000\\u001f","\u2028",1,1.5,null,true]}'.encode()
    assert json.loads(encoded)


def test_msgspec_skips_what_an_array_holds_beyond_a_struct() -> None:
    class First(msgspec.Struct, array_like=True):
        first: msgspec.Raw
        second: msgspec.Raw | None = None

    class Two(msgspec.Struct, array_like=True):
        first: msgspec.Raw = msgspec.Raw(b"")

    assert bytes(msgspec.json.decode(b'[1,{"a":[2]},3,4]', type=Two).first) == b"1"
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(b"[1,{]", type=Two)


def test_msgspecs_errors_end_in_a_path() -> None:
    class Outer(msgspec.Struct):
        hosts: list[Known]

    with pytest.raises(msgspec.ValidationError, match=r" - at `\$\.hosts\[1\]\.a`$"):
        msgspec.convert({"hosts": [{}, {"a": "x"}]}, Outer)


# setproctitle and uvloop


def test_a_title_fits_where_operators_look() -> None:
    program = "import setproctitle; setproctitle.setproctitle('netwatch: supervisor'); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as child:
        deadline_s = time.monotonic() + 10
        while title_of(child.pid) != "netwatch: supervisor":
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        child.communicate(b"\n")
