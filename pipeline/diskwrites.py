"""What a tree of processes has written to disks, as the kernel counts it: an SD card wears out by it.

`/proc/PID/io` counts a page when it becomes dirty for a file system that has a disk, and takes it back when the file
goes before it was written; files on a tmpfs do not count. A process's figure includes the children that it has reaped,
so the sum over a living tree misses nobody. What the file system adds for itself (journal, metadata) is not in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

PROC = "/proc"


def written_bytes(pids: Iterable[int], proc: str = PROC) -> int | None:
    """Bytes written by these processes and all below them, each once; None where the kernel does not count, or for
    nobody that we may look at."""
    figures = [_net_bytes(f"{proc}/{pid}/io") for pid in set(_with_children(pids, proc))]
    known = [figure for figure in figures if figure is not None]
    return sum(known) if known else None


def _with_children(pids: Iterable[int], proc: str) -> Iterator[int]:
    """Those that were started by a process's first thread, as all of ours are."""
    for pid in pids:
        yield pid
        try:
            with open(f"{proc}/{pid}/task/{pid}/children", encoding="ascii") as file:
                yield from _with_children(map(int, file.read().split()), proc)
        except (OSError, ValueError):  # gone, or a kernel without CONFIG_PROC_CHILDREN
            continue


def _net_bytes(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            figures = dict(line.split(": ", 1) for line in file.read().splitlines())
        return int(figures["write_bytes"]) - int(figures["cancelled_write_bytes"])
    except (OSError, ValueError, KeyError):
        return None
