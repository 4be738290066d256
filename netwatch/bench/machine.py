"""Where and with what was measured: figures without it say nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path


def about(directory: Path, peer: str) -> dict[str, str]:
    """Machine, system and versions, by what they are; `peer` is its path, or ""."""
    found = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} processors, {_memory_gb():.0f} GB",
        "kernel": platform.release(),
        "file system": file_system(directory),
        "netwatch": netwatch_version(),
        "Python": platform.python_version(),
        "wrk": _output("wrk", "--version").partition("[")[0].removeprefix("wrk").strip() or "not found",
    }
    if peer:
        found["peer"] = peer_version(peer)
    return found


def netwatch_version() -> str:
    version = _output(sys.executable, "-m", "netwatch", "--version").removeprefix("netwatch").strip()
    package = Path(__file__).parents[2]
    commit = _output("git", "-C", str(package), "describe", "--always", "--dirty", "--match=").strip()
    return f"{version} ({commit})" if commit else version


def peer_version(path: str) -> str:
    """Its Go version, which is half of its speed; or that it is not known."""
    said = re.search(r": (go\S+)", _output("go", "version", path))
    return said[1] if said else "its Go version is not known (`go version PATH` says it for a Go program)"


def file_system(directory: Path) -> str:
    """The type of the file system below a directory."""
    place, kind = directory.resolve(), "not known"
    longest = 0
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, type_, *_ = line.split()
        mount = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), mount)
        if place.is_relative_to(mount) and len(mount) >= longest:
            longest, kind = len(mount), type_
    return kind


def _processor() -> str:
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return model[1] if model else platform.machine()


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _output(*command: str) -> str:
    """What a command prints, wherever; "" when it cannot be run or fails to say it."""
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    # wrk --version prints its usage too, and exits with 1
    return said.stdout if said.returncode == 0 or command[0] == "wrk" else ""
