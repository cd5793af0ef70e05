from __future__ import annotations

import os
import time
from pathlib import Path

from pybatch.machine.load import energy, machine_load


def test_what_this_process_does_shows(tmp_path: Path) -> None:
    before = machine_load([tmp_path, tmp_path / "gone"])
    ballast = bytearray(64 << 20)
    ballast[:: 1 << 12] = b"x" * len(ballast[:: 1 << 12])
    with open(tmp_path / "file", "wb"):
        begin = time.process_time()
        while time.process_time() - begin < 0.2:
            pass
        after = machine_load([tmp_path])
    assert 0.15 < after.process_cpu_seconds - before.process_cpu_seconds < 2
    assert after.process_memory - before.process_memory > 48 << 20
    assert after.process_open_files == before.process_open_files + 1
    assert sum(after.cpu_seconds.values()) > sum(before.cpu_seconds.values())
    assert 0 < after.memory_available < after.memory_total
    assert before.disks.keys() == {str(tmp_path)}
    disk, counted = before.disks[str(tmp_path)], os.statvfs(tmp_path)
    assert disk.total == counted.f_blocks * counted.f_frsize
    assert 0 < disk.free < disk.total


def test_energy_is_read_as_linux_tells_it(tmp_path: Path) -> None:
    """Zones whose counter may not be read are left out, and two of one name are told apart."""
    for zone, name, counter in (
        ("intel-rapl:0", "package-0", "5000000"),
        ("intel-rapl:0:0", "core", "2500000"),
        ("intel-rapl:1:0", "core", "1000000"),
        ("intel-rapl:2", "dram", "nothing"),
    ):
        folder = tmp_path / zone
        folder.mkdir()
        (folder / "name").write_text(name + "\n")
        (folder / "energy_uj").write_text(counter + "\n")
    (tmp_path / "intel-rapl:3").mkdir()
    assert energy(tmp_path) == {"package-0": 5.0, "core": 2.5, "core intel-rapl:1:0": 1.0}
    assert energy(tmp_path / "none") == {}
