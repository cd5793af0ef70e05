from __future__ import annotations

import os
import signal
import threading
import time

from pybatch.jobs.preparation import signals_held


def test_signals_wait_for_the_end_of_the_block_whichever_thread_gets_them() -> None:
    came: list[int] = []
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP)}
    for signum in before:
        signal.signal(signum, lambda signum, frame: came.append(signum))
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    try:
        with signals_held():
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pthread_kill(other.ident or 0, signal.SIGHUP)
            time.sleep(0.05)  # for both to be delivered
            assert came == []
        assert sorted(came) == [signal.SIGHUP, signal.SIGTERM]
    finally:
        end.set()
        for signum, handler in before.items():
            signal.signal(signum, handler)
