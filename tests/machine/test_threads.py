from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from pybatch import _C, ops
from pybatch.machine.number_lists import numbers
from pybatch.machine.threads import bind_threads, most_threads, set_threads, usable_cores


@pytest.fixture(autouse=True)
def same_threads_after() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_default_is_the_usable_cores_or_what_openmp_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set_threads(3) == torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert set_threads(None) == torch.get_num_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert set_threads(None) == torch.get_num_threads() == usable_cores()
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_affinity_counts() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no CPU affinity")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/slice/job", {"slice/cpu.max": "250000 100000", "slice/job/cpu.max": "max 100000"}, 3),
        ("0::/slice/job", {"slice/cpu.max": "250000 100000", "slice/job/cpu.max": "20000 100000"}, 1),
        ("2:cpu:/job", {"cpu/job/cpu.cfs_quota_us": "350000", "cpu/job/cpu.cfs_period_us": "100000"}, 4),
        ("2:cpu:/job", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, 8),
        ("2:cpu:/outside", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_a_quota_counts(
    groups: str, files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(psutil, "cpu_count", lambda *, logical: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, content in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{n}": t for n, t in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", 100_000])
def test_a_wrong_number_is_refused(threads: object) -> None:
    with pytest.raises(ValueError, match=rf"^threads: expected an integer from 1 to {most_threads()}, or None"):
        set_threads(threads)  # type: ignore[arg-type]
    assert most_threads() >= (os.cpu_count() or 1)


def test_what_openmp_was_told_has_the_same_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 100_000)  # as torch has it in a process so started
    with pytest.raises(ValueError, match=r"^OMP_NUM_THREADS: expected an integer from 1 to"):
        set_threads(None)


FORKS = """
import os, sys, torch
from pybatch import _C, ops
from pybatch.machine.number_lists import numbers
from pybatch.machine.threads import set_threads

def product():
    # Ours, and torch's own. Not its exp: of MKL's, a thread's first call is at times less precise (1e-4).
    return ops.matmul_dense(x, weight, out=torch.empty(64, 512)), (x * x).sum()

set_threads(2)
x, weight = torch.randn(64, 2000), ops.pack_dense(torch.randn(512, 2000))
expected = product()
for depth in range(3):  # a child of a child, too
    for threads in (None, 1, 2):
        if (child := os.fork()) == 0:
            if threads:
                set_threads(threads)
            got = product()
            os._exit(not torch.equal(got[0], expected[0]) or not torch.allclose(got[1], expected[1]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert torch.equal(product()[0], expected[0])
    if depth < 2 and (child := os.fork()):
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(torch.get_num_threads(), flush=True)
"""


def test_a_forked_child_computes_on_as_many_threads() -> None:
    """OpenMP's threads are not in it, and it would wait for them for ever."""
    result = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "2\n"), result.stderr


STOPPED = """
import os, sys, torch
from pybatch import _C, ops

torch.set_num_threads(3)
x, weight = torch.randn(64, 2000), ops.pack_dense(torch.randn(512, 2000))
product = lambda: ops.matmul_dense(x, weight, out=torch.empty(64, 512))
before = set(os.listdir("/proc/self/task"))
expected = product()
print(*set(os.listdir("/proc/self/task")) - before, flush=True)
sys.stdin.readline()
print(all(torch.equal(product(), expected) for _ in range(50)), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs ptrace and /proc")
def test_nobody_waits_for_a_thread_that_does_not_run() -> None:
    """As a busy neighbour or a container's quota has it: the others do its share."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    seize, interrupt, any_thread = 0x4206, 0x4207, 0x40000000
    traced = []
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            threads = [int(each) for each in child.stdout.readline().split()]
            assert len(threads) == 2
            time.sleep(0.2)  # they have nothing to do by then
            for thread in threads:
                if ptrace(seize, thread, None, None) != 0:
                    pytest.skip(f"ptrace is not allowed: {os.strerror(ctypes.get_errno())}")
                traced.append(thread)
                assert ptrace(interrupt, thread, None, None) == 0
                os.waitpid(thread, any_thread)
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "True\n"
        finally:
            child.kill()
            for thread in traced:  # else its process is not gone
                os.waitpid(thread, any_thread)


STEPS = """
import os, sys, time, torch, pybatch
from pathlib import Path

def run_times():
    tasks = os.listdir("/proc/self/task")
    return {t: int(Path(f"/proc/self/task/{t}/schedstat").read_text().split()[0]) for t in tasks}

def those_that_run(work):
    before = run_times()
    work()
    time.sleep(0.1)
    return {thread for thread, t in run_times().items() if t != before.get(thread)}

llm = pybatch.LLM(sys.argv[1], threads=3)
openmp = those_that_run(lambda: [torch.exp(torch.randn(1 << 20)) for _ in range(10)]) - {str(os.getpid())}
greedy = dict(temperature=0, max_tokens=3, ignore_eos=True)
params = [
    pybatch.SamplingParams(**greedy, prompt_logprobs=1),  # many rows of hidden states
    pybatch.SamplingParams(**greedy, prompt_logprobs=1),
    pybatch.SamplingParams(max_tokens=3, ignore_eos=True, n=140, logprobs=1),  # one row of logits many times
    pybatch.SamplingParams(**greedy),
]
prompts = [[5 + (i + j) % 200 for j in range(400)] for i in range(4)]
step = those_that_run(lambda: llm.generate(prompts, params, use_tqdm=False))
print(len(openmp), len(openmp & step), len(step) > 2)
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux with schedstat")
def test_a_step_wakes_no_threads_of_openmp(tiny_model: Path) -> None:
    """They would spin beside those of the kernels, on as many processors as these have."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    environment.pop("OMP_NUM_THREADS", None)
    result = subprocess.run(
        [sys.executable, "-c", STEPS, tiny_model], capture_output=True, text=True, timeout=60, env=environment
    )
    assert (result.returncode, result.stdout) == (0, "2 0 True\n"), result.stderr


@pytest.fixture(scope="module")
def stopped_threads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs Linux and two processors")
    program = tmp_path_factory.mktemp("threads") / "stopped_threads"
    csrc = Path(__file__).parents[2] / "csrc"
    sources = [Path(__file__).parent / "stopped_threads.cpp", csrc / "cpu/parallel.cpp"]
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, "-std=c++20", "-O1", "-pthread", f"-I{csrc}", *sources, "-o", program], check=True)
    return program


@pytest.mark.parametrize("stopped", ["worker", "caller"])
def test_a_thread_stopped_in_mid_piece_goes_on_where_another_waits(stopped_threads: Path, stopped: str) -> None:
    result = subprocess.run([stopped_threads, stopped], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "it went on, and the worker left\n")


CUT = """
import faulthandler, mmap, resource, tempfile, torch
from pybatch import _C, ops

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
faulthandler.enable()
torch.set_num_threads(2)
x, size = torch.ones(1, 1024), 16 << 20
with tempfile.TemporaryFile() as file:
    file.truncate(size)
    weight = torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.float32).view(256, 1024, 16)
    ops.matmul_dense(x, weight, out=torch.empty(1, 4096))
    file.truncate(size // 2)  # the share of the pool's thread
    ops.matmul_dense(x, weight, out=torch.empty(1, 4096))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's SIGBUS")
def test_a_fault_on_a_thread_of_the_pool_is_told_to_handlers() -> None:
    """As that of a file of weights that is cut while it is in use."""
    result = subprocess.run([sys.executable, "-c", CUT], capture_output=True, text=True, timeout=60)
    assert result.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in result.stderr


def test_kernels_may_be_called_by_several_threads_at_once() -> None:
    set_threads(3)
    x, weight = torch.randn(64, 2000), ops.pack_dense(torch.randn(512, 2000))

    def product(_: int) -> Tensor:
        return ops.matmul_dense(x, weight, out=torch.empty(64, 512))

    expected = product(0)
    with ThreadPoolExecutor(4) as threads:
        assert all(torch.equal(each, expected) for each in threads.map(product, range(200)))


def bound_to(processors: set[int]) -> set[int]:
    """This process's threads that may run on these alone, once none is under way to another."""
    found: list[set[int]] = []
    while len(found) < 5 or any(each != found[-1] for each in found[-5:]):
        time.sleep(0.02)
        tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
        found.append({task for task in tasks if os.sched_getaffinity(task) <= processors})
    return found[-1]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no CPU affinity")
def test_threads_are_bound_but_not_the_one_that_calls() -> None:
    allowed = os.sched_getaffinity(0)
    first = {min(allowed)}
    if allowed == first:
        pytest.skip("there is one processor")
    x, weight = torch.ones(256, 4096), torch.ones(4096)
    set_threads(3)
    ops.rms_norm(x, weight, 1e-6)  # now there are two threads at least
    assert not bound_to(first)
    try:
        assert set(bind_threads("all")) == allowed
        assert bind_threads(str(min(allowed))) == [min(allowed)]
        bound = bound_to(first)
        assert len(bound) >= 2
        assert threading.get_native_id() not in bound
        set_threads(len(bound) + 2)
        ops.rms_norm(x, weight, 1e-6)
        assert len(bound_to(first)) == len(bound) + 1  # one that has been started since
        if (child := os.fork()) == 0:  # whose threads are its own
            ops.rms_norm(x, weight, 1e-6)
            os._exit(len(bound_to(first)) < 2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        _C.bind_threads([])
        for task in bound_to(first):
            os.sched_setaffinity(task, allowed)


def test_cores_come_before_their_second_threads(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("one processor has one order")
    for number in allowed:
        topology = tmp_path / f"sys/devices/system/cpu/cpu{number}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(
            f"{allowed[1]},{allowed[0]}" if number in allowed[:2] else str(number)
        )
    try:
        chosen = bind_threads("all", tmp_path)
        assert chosen == [allowed[1], *allowed[2:], allowed[0]]
    finally:
        _C.bind_threads([])


def test_lists_of_processors() -> None:
    assert list(numbers("0-3,8,10-11\n")) == [0, 1, 2, 3, 8, 10, 11]
    for wrong in ("", "some", "0-", "99999", "0,99999", "3-1", "0-999999999999", 0):
        with pytest.raises(ValueError, match=rf"bind_threads: expected 'all' or a list such as .*; got {wrong!r}"):
            bind_threads(wrong)  # type: ignore[arg-type]
