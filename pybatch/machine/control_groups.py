"""The control groups (cgroups) that this process is in, of versions 1 and 2, and all that are around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class ControlGroup:
    name: str  # its path below the outermost one
    directory: Path
    version: int

    def read(self, file: str) -> str:
        """What it says there; "" if it does not."""
        return read(self.directory / file)

    def number(self, file: str) -> int | None:
        text = self.read(file).strip()
        return int(text) if text.isdecimal() else None


def control_groups(controller: str, root: Path = ROOT) -> Iterator[ControlGroup]:
    """Those that may limit what the controller ("memory", "cpu") looks after, the innermost first. root: where /proc
    and /sys are found."""
    mounts = dict(_mounts(controller, root))
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        version = 2 if not controllers else 1
        if version == 1 and controller not in controllers.split(","):
            continue
        default = "/sys/fs/cgroup" if version == 2 else f"/sys/fs/cgroup/{controller}"
        mounted_group, mount = mounts.get(version, ("/", default))
        top = root / mount.lstrip("/")
        inside = path.removeprefix(mounted_group.rstrip("/")).lstrip("/")
        group = top if ".." in inside.split("/") else top / inside
        while group.is_relative_to(top):
            yield ControlGroup("/" if group == top else f"/{group.relative_to(top)}", group, version)
            group = group.parent


def _mounts(controller: str, root: Path) -> Iterator[tuple[int, tuple[str, str]]]:
    """For each version of control groups: which group is mounted, and where."""
    for line in read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, system = before.split(), after.split()
        if len(fields) < 5 or len(system) < 3:
            continue
        if system[0] == "cgroup2":
            yield 2, (fields[3], fields[4])
        elif system[0] == "cgroup" and controller in system[2].split(","):
            yield 1, (fields[3], fields[4])


def read(path: Path) -> str:
    """A file's text; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
