"""The uploader: all disk and network I/O of incidents, in one process with two threads, keeper and sender.

The keeper is the main thread: it beats, and is woken by its doorbell (workers ring it when they have held something,
the sender when it is done with a job) or a signal, else by the heartbeat alone. The sender waits for the network, and
nothing waits for the sender.
"""

from __future__ import annotations

import importlib
import os
import queue
import select
import time
from collections.abc import Callable, Mapping

from pipeline.board import BoardMemory
from pipeline.child import Child, event, log, trim_memory
from pipeline.clockgate import ClockGate
from pipeline.keeper import Keeper
from pipeline.sender import Notifier, Sender, SenderThread
from pipeline.settings import Settings
from pipeline.spool import SPOOL_DIR, SettledQueue, Spool
from pipeline.store import LocalStore, ObjectStore, open_store, r2_settings

STORE_DIR = "store"  # in the state directory: the local store
DRAIN_S = 0.5  # to keep what is held when asked to stop
SENDER_STOP_S = 0.3
DESK_PATIENCE_S = 30.0
_NS = 10**9


class EvidenceDesk:
    """Keeper and sender over one state directory; disk and network I/O. Starts no thread and no process."""

    def __init__(
        self,
        settings: Settings,
        environment: Mapping[str, str],
        wake_keeper: Callable[[], None] = lambda: None,
        memory: BoardMemory | None = None,
    ) -> None:
        """`memory` is the board, where there is one, to show there how uploads and notices are doing."""
        rows = (memory.uploads, memory.notices) if memory else None
        r2 = r2_settings(environment, environment.get("CREDENTIALS_DIRECTORY"))
        self.store: ObjectStore = open_store(r2, os.path.join(settings.state_dir, STORE_DIR))
        webhook = _webhook(settings.webhook_url)
        settled: SettledQueue = queue.SimpleQueue()
        spool = Spool(os.path.join(settings.state_dir, SPOOL_DIR))
        self.sender = Sender(spool, self.store, settled, wake_keeper, webhook, _gate(self.store), rows=rows)
        self.keeper = Keeper(settings, spool, self.store, settled, self.sender.bell.set)

    def drain(self, patience_s: float = DESK_PATIENCE_S) -> bool:
        """Keep and send all that is held; whether it is all stored. Where nothing can be done for `patience_s`, what is
        left stays in the spool; a next try that is due later than that is not waited for."""
        give_up_ns = 0
        while True:
            now_ns = time.monotonic_ns()
            kept, sent_s = self.keeper.step(now_ns), self.sender.step(now_ns)
            now_ns = time.monotonic_ns()
            waits = [wait for wait in (sent_s, self.keeper.wait_s(now_ns)) if wait is not None]
            if kept or sent_s == 0.0:
                give_up_ns = 0
            elif not waits:
                if not self.keeper.step(now_ns):  # what the sender has just handed back
                    return True
            else:
                give_up_ns = give_up_ns or now_ns + int(patience_s * _NS)
                if now_ns + int(min(waits) * _NS) > give_up_ns:
                    return False
                time.sleep(min(*waits, 0.5))

    def close(self) -> None:
        """Close the incident log; what is in the spool is sent the next time."""
        self.keeper.close()


def _webhook(url: str) -> Notifier | None:
    """Loaded only when it is asked for: TLS takes 5 MB."""
    if not url:
        return None
    webhook: Notifier = importlib.import_module("pipeline.webhook").Webhook(url)
    return webhook


def _gate(store: ObjectStore) -> ClockGate | None:
    """R2 alone asks for the right time."""
    ask = getattr(store, "server_date_ns", None)
    return None if isinstance(store, LocalStore) or ask is None else ClockGate(ask)


def run(child: Child) -> int:
    """The uploader's life: keep while there is something to keep, then sleep until the doorbell rings."""
    desk = EvidenceDesk(child.settings, os.environ, child.keeper_bell.ring, child.board.memory)
    bell = child.keeper_bell.fileno()
    child.signals.poll.register(bell, select.POLLIN)
    log.info(
        event("uploader ready", store=desk.store.describe(), webhook="yes" if child.settings.webhook_url else "no")
    )
    thread = SenderThread(desk.sender)
    trim_memory()
    while not child.stopping:
        now_ns = time.monotonic_ns()
        child.beat(now_ns)
        if desk.keeper.step(now_ns):
            child.row.turns += 1
            continue
        disk_s = desk.keeper.wait_s(time.monotonic_ns())
        wait_s = child.heartbeat_s if disk_s is None else min(disk_s, child.heartbeat_s)
        if bell in child.signals.wait(wait_s):
            child.keeper_bell.clear()
    _stop(desk, thread)
    return 0


def _stop(desk: EvidenceDesk, thread: SenderThread) -> None:
    """Keep what is held already; what the sender has in hand, it sends again the next time."""
    desk.sender.stopping.set()
    drain_until_ns = time.monotonic_ns() + int(DRAIN_S * _NS)
    while (now_ns := time.monotonic_ns()) < drain_until_ns and desk.keeper.step(now_ns):
        pass
    if thread.stop(SENDER_STOP_S):
        desk.keeper.step(time.monotonic_ns())
    desk.close()
