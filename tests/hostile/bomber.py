"""A client in a process of its own that sends bombs: `python -m tests.hostile.bomber PORT EACH_S`.

It prints a line when it begins, sends one bomb every EACH_S seconds, however long the answers take, until its standard
input ends, and prints the statuses that it got as a JSON array.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys

from tests.hostile.raw import post

MIB = 1024 * 1024
MAX_WAITING = 8
"""No more bombs than this wait for their answers at a time."""


async def throw(port: int, request: bytes, statuses: list[int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    statuses.append(int((await reader.read()).split()[1]))
    writer.close()


async def throw_all(port: int, each_s: float) -> list[int]:
    bomb = gzip.compress(bytes(MIB)) * 64
    request = post(bomb, b"Connection: close\r\nContent-Encoding: gzip\r\n")
    statuses: list[int] = []
    waiting: set[asyncio.Task[None]] = set()
    print("begun", flush=True)
    loop = asyncio.get_running_loop()
    over = loop.run_in_executor(None, sys.stdin.read)
    due_s = loop.time()
    while not over.done():
        if len(waiting) < MAX_WAITING:
            task = asyncio.create_task(throw(port, request, statuses))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
        due_s = max(due_s + each_s, loop.time())
        await asyncio.wait([over], timeout=due_s - loop.time())
    await asyncio.gather(*waiting)
    return statuses


if __name__ == "__main__":
    print(json.dumps(asyncio.run(throw_all(int(sys.argv[1]), float(sys.argv[2])))))
