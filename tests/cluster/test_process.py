from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace

import psutil

from pybatch.cluster.process import Process, this_process, wait_for_ends, watch

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_this_process_is_known_by_its_number_and_others_machines_are_not_ours() -> None:
    process = this_process()
    assert process.pid == os.getpid()
    assert watch(replace(process, space="another")) is None
    fd = watch(process)
    assert fd is not None
    assert not wait_for_ends([fd], 0.01)
    assert wait_for_ends([], 0)


def test_the_wait_ends_with_the_last_process_and_closes_what_it_watched() -> None:
    before = psutil.Process().num_fds()
    children = [subprocess.Popen(SLEEP) for _ in range(3)]
    watched = [fd for child in children if (fd := watch(Process(this_process().space, child.pid))) is not None]
    assert len(watched) == 3
    for delay, child in enumerate(children):
        threading.Timer(0.1 * delay, child.kill).start()
    assert wait_for_ends(watched, 60)
    assert all(psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE for child in children)
    assert psutil.Process().num_fds() == before
    for child in children:
        child.wait()
        assert watch(Process(this_process().space, child.pid)) is None
