"""What /proc knows about the processes of a server."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.system.server import Process


def is_busy(process: Process, watched_s: float) -> bool:
    """Whether the process wants a processor most of the time, however much of one it gets on a busy machine."""
    states = []
    until_s = time.monotonic() + watched_s
    while time.monotonic() < until_s:
        states.append(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0])
        time.sleep(0.01)
    return states.count("R") > len(states) / 2


def held_segments(writer: Process) -> set[str]:
    """The open segments that the writer has lines in."""
    paths = [Path(os.readlink(entry)) for entry in Path(f"/proc/{writer.pid}/fd").iterdir()]
    return {path.name.partition(".")[0] for path in paths if path.name.endswith(".open") and path.stat().st_size}


def descriptors_total(process: Process) -> int:
    """How many file descriptors the process has open."""
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def queue_path(writer: Process) -> str:
    """Where workers connect to: the path of the writer's listening socket."""
    inodes = {os.readlink(f"/proc/{writer.pid}/fd/{name}") for name in os.listdir(f"/proc/{writer.pid}/fd")}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if len(fields) == 8 and f"socket:[{fields[6]}]" in inodes and fields[7].endswith("queue.sock"):
            return fields[7]
    raise AssertionError("the writer listens nowhere")
