"""What /proc knows about the processes of a server."""

from __future__ import annotations

import os
from pathlib import Path

from tests.system.server import Process


def cpu_s(process: Process) -> float:
    """The CPU time that the process has taken."""
    stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


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
