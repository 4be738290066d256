"""A tree of processes of which each burns BURN_S of CPU and writes BYTES, to see that an account leaves nothing out.

`python -m tests.burner DIRECTORY`: the root itself, a child that it reaps and an orphan that ends by itself, all before
the file `ready` appears; and an orphan in a session of its own, which does it after the root has been killed.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

BURN_S = 0.3
BYTES = 1 << 20
BEFORE = 3
"""Processes that have done it when the file `ready` is there."""
AFTER = 1


def burn(directory: Path) -> None:
    until_s = BURN_S  # of each process, since it was forked; of the root also its start
    thread = threading.Thread(target=lambda: [None for _ in iter(lambda: time.process_time() < until_s, False)])
    thread.start()  # the account must also hold threads that have ended
    thread.join()
    with (directory / f"burnt-{os.getpid()}").open("wb") as file:
        file.write(os.urandom(BYTES))
        file.flush()
        os.fsync(file.fileno())


def orphan(directory: Path, wait_for: int | None = None, close: int | None = None) -> None:
    """A grandchild whose parent ends at once; it waits for the end of `wait_for`, if there is one."""
    if (child := os.fork()) == 0:
        if os.fork() == 0:
            os.setsid()
            if close is not None:
                os.close(close)
            if wait_for is not None:
                os.read(wait_for, 1)
            burn(directory)
        os._exit(0)
    os.waitpid(child, 0)


def main(directory: Path) -> None:
    ours, theirs = os.pipe()
    orphan(directory, wait_for=ours, close=theirs)
    orphan(directory)
    if (child := os.fork()) == 0:
        burn(directory)
        os._exit(0)
    os.waitpid(child, 0)
    burn(directory)
    while len(list(directory.glob("burnt-*"))) < BEFORE or any(
        path.stat().st_size < BYTES for path in directory.glob("burnt-*")
    ):
        time.sleep(0.01)
    (directory / "ready").touch()
    time.sleep(600)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
