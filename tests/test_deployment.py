"""The systemd unit and the container file in examples/deploy, as far as they can be tried without either running."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from string import Template

import pytest
from cli_command import COMMAND

ROOT = Path(__file__).resolve().parent.parent
UNIT, CONTAINER = ROOT / "examples/deploy/pybatch.service", ROOT / "examples/deploy/Containerfile"
INSTRUCTIONS = {
    *("FROM", "ARG", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "ENV", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"),
    *("ENTRYPOINT", "CMD"),
}


def settings() -> dict[str, list[str]]:
    """Of the unit, by name."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def instructions() -> list[tuple[str, str]]:
    lines = [line for line in CONTAINER.read_text().splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined)]


def of(name: str) -> list[str]:
    return [rest for each, rest in instructions() if each == name]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_systemd_takes_the_unit_and_finds_it_hardened(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/pybatch/bin/pybatch", sys.executable))
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    rating = ["systemd-analyze", "security", "--offline=true", "--threshold=25", unit]  # 2.5 of 10; 10 is open
    rated = subprocess.run(rating, capture_output=True, text=True)
    assert rated.returncode == 0, rated.stdout[-300:]


def test_the_unit_gives_the_server_more_time_to_stop_than_it_takes() -> None:
    found = settings()
    command = shlex.split(found["ExecStart"][0])
    drain = float(command[command.index("--shutdown-timeout") + 1])
    assert float(found["TimeoutStopSec"][0]) > drain + 10
    assert (found["Restart"], found["KillSignal"]) == (["on-failure"], ["SIGTERM"])


def test_the_container_s_file_is_whole() -> None:
    assert {name for name, _ in instructions()} == INSTRUCTIONS
    stages = [rest.split(" AS ")[1] for rest in of("FROM") if " AS " in rest]
    for rest in of("COPY"):
        options = [word for word in rest.split() if word.startswith("--")]
        assert all(option.removeprefix("--from=") in stages for option in options)
        if not options:
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources), rest
    last = [name for name, _ in instructions()][::-1]
    assert last.index("USER") < last.index("FROM"), "the server does not run as root"
    assert of("USER") == ["10001"]
    for command in of("RUN"):
        assert subprocess.run(["sh", "-n"], input=command, text=True).returncode == 0, command


def test_the_sources_that_the_container_copies_are_those_that_the_package_needs(tmp_path: Path) -> None:
    names = [name for rest in of("COPY") if not rest.startswith("--") for name in rest.split()[:-1]]
    for name in names:
        (tmp_path / name).symlink_to(ROOT / name)
    program = "import setuptools.build_meta as b; print(b.prepare_metadata_for_build_wheel('metadata'))"
    (tmp_path / "metadata").mkdir()
    made = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    metadata = (tmp_path / "metadata" / made.stdout.split()[-1] / "METADATA").read_text()
    assert "Provides-Extra: serve" in metadata
    assert "License-File: LICENSE" in metadata


def test_both_start_a_server_that_is_healthy_and_stops_in_order(tiny_model: Path, tmp_path: Path) -> None:
    (entry,), (given,), (check,) = of("ENTRYPOINT"), of("CMD"), of("HEALTHCHECK")
    container = [*json.loads(entry), *json.loads(given)]
    unit = shlex.split(Template(settings()["ExecStart"][0]).substitute(MODEL="smollm2-135m"))
    probe = json.loads(check.partition("CMD ")[2])
    for number, words in enumerate((unit, container)):
        assert Path(words[0]).name == "pybatch"
        changed = {"smollm2-135m": str(tiny_model), "8000": "0", words[words.index("--data-dir") + 1]: str(tmp_path)}
        command = [*COMMAND, *(changed.get(word, word) for word in words[1:]), "--threads", "1"]
        environment = {**os.environ, "PYBATCH_API_KEY": f"sk-{number}-long-enough-to-be-a-key"}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        try:
            assert process.stderr is not None
            announced = process.stderr.readline()
            assert "Serving" in announced, announced + process.stderr.read()
            port = announced.strip().rpartition(":")[2]
            here = [sys.executable, *(word.replace(":8000", f":{port}") for word in probe[1:])]
            assert subprocess.run(here).returncode == 0
            process.terminate()
            assert process.wait(60) == 0
            assert subprocess.run(here, stderr=subprocess.DEVNULL).returncode != 0
        finally:
            process.kill()
            process.wait()
            process.stderr.close()
