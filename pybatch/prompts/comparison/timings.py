"""How long a comparison's requests took: kept beside the answers, which do not depend on it, for a run that goes on."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pybatch.jobs.job import Job, Saved


@dataclass(slots=True)
class VariantTimes:
    """latencies: from a request's first step to its last token, in seconds, by row and repeat; those of a chain's steps
    are added up. seconds: of the machine, the variant's share."""

    latencies: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))
    seconds: float = 0.0


class Timings:
    """A file of lines of JSON, to which each run adds."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)

    @contextmanager
    def of(self, job: Job, name: str) -> Iterator[None]:
        """Watches a job, however it ends. name: of its file."""
        with self._path.open("a", encoding="utf-8", buffering=1) as file:

            def watch(saved: Saved) -> None:
                fields = saved.row.fields
                latency = sum(each.inference_time or 0.0 for each in saved.metrics)
                if latency:
                    own = {name: fields[name] for name in ("variant", "row", "repeat")}
                    file.write(json.dumps({"job": name, **own, "latency": latency}) + "\n")

            job.watchers.append(watch)
            try:
                yield
            finally:
                job.watchers.remove(watch)
                file.write(json.dumps({"job": name, "seconds": job.progress.seconds}) + "\n")

    def read(self) -> dict[str, VariantTimes]:
        """By variant. The seconds of a job are shared out by the time that each one's requests ran."""
        latest: dict[tuple[str, str, int, int], float] = {}
        seconds: dict[str, float] = defaultdict(float)
        for line in self._lines():
            if "seconds" in line:
                seconds[line["job"]] += line["seconds"]
            else:
                latest[line["job"], line["variant"], line["row"], line["repeat"]] = line["latency"]
        times: dict[str, VariantTimes] = defaultdict(VariantTimes)
        of_job: dict[str, float] = defaultdict(float)
        for (job, *_), latency in latest.items():
            of_job[job] += latency
        for (job, variant, row, repeat), latency in latest.items():
            times[variant].latencies[row, repeat] += latency
            times[variant].seconds += seconds[job] * latency / of_job[job]
        return times

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:  # torn by a kill
                continue
