"""Free memory is that of the tightest limit: control groups of both versions, the groups around them, ulimit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from pybatch.machine import memory
from pybatch.machine.memory import Limit, advice, free_memory, tightest_limit

MB = 1 << 20
CPU = torch.device("cpu")


def group(directory: Path, **files: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(f"{content}\n")


def proc(root: Path, cgroup: str, mountinfo: str = "") -> Path:
    group(root / "proc/self", cgroup=cgroup, mountinfo=mountinfo)
    return root


V2 = "30 20 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "31 20 0:27 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory"
STAT = f"anon {100 * MB}\nfile {300 * MB}\ninactive_file {200 * MB}\nactive_file {50 * MB}\n"


def test_a_group_of_version_2_and_those_around_it(tmp_path: Path) -> None:
    root = proc(tmp_path, "0::/jobs/one", V2)
    top = root / "sys/fs/cgroup"
    group(top / "jobs/one", memory__max="max", memory__high="max", memory__current=500 * MB, memory__stat=STAT)
    assert tightest_limit(root) is None
    group(top / "jobs", memory__max=2000 * MB, memory__current=600 * MB, memory__stat=STAT)
    assert tightest_limit(root) == Limit("memory.max of the control group /jobs", 2000 * MB, 350 * MB)
    group(top / "jobs/one", memory__high=900 * MB)
    assert tightest_limit(root) == Limit("memory.high of the control group /jobs/one", 900 * MB, 250 * MB)
    assert free_memory(CPU, root) == 650 * MB


def test_cached_files_are_free(tmp_path: Path) -> None:
    """1.8 of 2 GiB in the page cache."""
    root = proc(tmp_path, "0::/", V2)
    stat = f"anon {100 * MB}\ninactive_file {1700 * MB}\nactive_file {100 * MB}\n"
    group(root / "sys/fs/cgroup", memory__max=2048 * MB, memory__current=1900 * MB, memory__stat=stat)
    assert free_memory(CPU, root) == 1948 * MB


@pytest.mark.parametrize("mountinfo", [V1, ""])
def test_groups_of_version_1(tmp_path: Path, mountinfo: str) -> None:
    root = proc(tmp_path, "5:cpu,cpuacct:/job\n4:memory:/job\n0::/", mountinfo)
    top = root / "sys/fs/cgroup/memory"
    stat = f"inactive_file 1\ntotal_inactive_file {30 * MB}\ntotal_active_file {10 * MB}"
    used = {"memory__usage_in_bytes": 100 * MB, "memory__stat": stat}
    group(top, memory__limit_in_bytes=9223372036854771712, **used)
    assert tightest_limit(root) is None
    group(top / "job", memory__limit_in_bytes=256 * MB, **used)
    assert tightest_limit(root) == Limit("memory.limit_in_bytes of the control group /job", 256 * MB, 60 * MB)


def test_groups_as_a_container_sees_them(tmp_path: Path) -> None:
    """/proc may name the group from outside: as the mounted one, or as above the one that is mounted."""
    for path, mount in (("/docker/abc/inner", V2.replace(" / ", " /docker/abc ", 1)), ("/../../other", V2)):
        root = proc(tmp_path / path.replace("/", "_"), f"0::{path}", mount)
        group(root / "sys/fs/cgroup", memory__max=300 * MB, memory__current=100 * MB, memory__stat="")
        assert tightest_limit(root) == Limit("memory.max of the control group /", 300 * MB, 100 * MB)


@pytest.mark.parametrize("content", ["", "nonsense", "-5", "max", "a b"])
def test_files_that_say_nothing_are_no_limit(tmp_path: Path, content: str) -> None:
    root = proc(tmp_path, "0::/", V2)
    group(root / "sys/fs/cgroup", memory__max=content, memory__current=content, memory__stat=content)
    assert tightest_limit(root) is None
    assert tightest_limit(tmp_path / "without proc") is None
    assert free_memory(CPU, root) > 0


def test_an_error_names_the_limit_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = proc(tmp_path, "0::/", V2)
    group(root / "sys/fs/cgroup", memory__max=300 * 10**6, memory__current=100 * 10**6, memory__stat="")
    said = "; memory.max of the control group / allows this process 300.0 MB and leaves 200.0 MB: raise it, "
    assert advice(CPU, root) == said + "or ask for less"
    free = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: free)
    assert advice(CPU, root) == ""


LIMITED = """
import json, resource, sys
from pathlib import Path
from pybatch import LLM, SamplingParams
from pybatch.machine.facts import facts
from pybatch.machine.memory import tightest_limit

pages = int(Path("/proc/self/statm").read_text().split()[0])
room = 1_500_000_000
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room,) * 2)
said = {"limit": tightest_limit().name, "env": facts()["memory_limited_by"]}
llm = LLM(sys.argv[1])
said["answered"] = len(llm.generate(["abc"], SamplingParams(max_tokens=2, ignore_eos=True), use_tqdm=False)) == 1
settings = {"blocks": {"num_kv_blocks": 10**6}, "all": {"memory_utilization": 1.0, "max_num_seqs": 10**6}}
for name, arguments in settings.items():
    try:
        LLM(sys.argv[1], **arguments)
        said[name] = "fits"
    except ValueError as error:
        said[name] = str(error)
print(json.dumps(said))
"""


def test_a_limited_address_space_is_seen_and_named(tiny_model: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tiny_model)], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    assert (said["limit"], said["env"], said["answered"]) == ("ulimit -v", "ulimit -v", True)
    assert "num_kv_blocks: no memory for 1,000,000 KV blocks" in said["blocks"]
    assert "; ulimit -v allows this process" in said["blocks"]
    assert said["all"] == "fits" or "memory" in said["all"]
