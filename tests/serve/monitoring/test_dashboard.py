"""The dashboard and the alerts name metrics that are there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from live_server import Server
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from pybatch.machine.gpus import GpuLoad
from pybatch.machine.load import MachineLoad
from pybatch.serve.monitoring.prometheus.machine import gpu_families, machine_families

FOLDER = Path(__file__).parents[3] / "examples" / "monitoring"

# What a machine with a GPU, sensors and counters of energy tells: this one may have none.
GPU = GpuLoad(0, "H100", 80 << 30, 1 << 30, 0.5, 300.0, 700.0, 1e6, 60.0)
MACHINE = MachineLoad(
    {"user": 1.0}, 2, 1, 1.0, 1, 1, 1, {}, {"read": 1}, {"sent": 1}, {"cpu": 50.0}, {"package-0": 1.0}
)


@pytest.fixture(scope="module")
def samples(server: Server) -> dict[str, set[str]]:
    """The labels of each sample's name, besides those that Prometheus adds."""
    httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 1})
    families: list[Metric] = list(text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text))
    families += [*gpu_families([GPU]), *machine_families(MACHINE)]
    found: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def dashboard() -> Any:
    return json.loads((FOLDER / "grafana-dashboard.json").read_text())


def rules() -> list[Any]:
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return group["rules"]


def panels() -> list[Any]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expect_known(expression: str, samples: dict[str, set[str]]) -> None:
    names = re.findall(r"pybatch:\w+", expression)
    assert names or expression.startswith("up{"), expression
    known = {"instance", "job", "le"}
    for name in names:
        assert name in samples, f"{name}, in {expression}"
        known |= samples[name]
    grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
    selected = re.findall(r"(\w+)(?:=|!=|=~|!~)\"", expression)
    labels = {label.strip() for labels in grouped for label in labels.split(",")} | set(selected)
    assert labels <= known, expression


def test_every_expression_names_metrics_and_labels_that_are_there(samples: dict[str, set[str]]) -> None:
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    expressions += [rule["expr"] for rule in rules()]
    assert len(expressions) > 50
    for expression in expressions:
        expect_known(expression, samples)
    with pytest.raises(AssertionError):
        expect_known("rate(pybatch:no_such_thing[5m])", samples)
    with pytest.raises(AssertionError):
        expect_known("sum by (nothing) (pybatch:batches)", samples)


def test_the_dashboard_shows_all_of_vllm_s_metrics(samples: dict[str, set[str]]) -> None:
    shown = set(re.findall(r"pybatch:\w+", json.dumps(dashboard())))
    engine = {re.sub(r"_(bucket|sum|count)$", "", name) for name, labels in samples.items() if "model_name" in labels}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert engine - shown == {
        "pybatch:kv_cache_blocks",
        "pybatch:kv_cache_pinned_blocks",
        "pybatch:prefix_cache_disk_hits_total",
        "pybatch:request_targets_total",
        "pybatch:swapped_in_blocks_total",
        "pybatch:swapped_out_blocks_total",
        "pybatch:spec_decode_num_accepted_tokens_per_pos_total",
    }


def test_panels_lie_beside_each_other_and_have_their_own_ids() -> None:
    cells: list[tuple[int, int]] = []
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells += [(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
    assert len(cells) == len(set(cells))
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs))


def test_alerts_are_complete() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]
    assert len({rule["alert"] for rule in rules()}) == len(rules()) >= 8
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    assert config["scrape_configs"][0]["job_name"] == "pybatch"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_the_rules_and_every_expression(tmp_path: Path) -> None:
    subprocess.run(["promtool", "check", "config", str(FOLDER / "prometheus.yml")], check=True)
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    records: Iterable[Any] = [
        {"record": f"x:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(expressions)
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": list(records)}]}))
    subprocess.run(["promtool", "check", "rules", str(file)], check=True)
