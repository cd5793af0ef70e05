"""What `pybatch plan --machines 2` predicts against a job on a real Ray cluster of two workers of one core each.

    python bench/fleet.py [--rows 160] [--json FILE]

One machine is planned as pybatch plan does, with the step times of one thread; the start-up is that of a job of two
short rows on the same cluster. The rows, of random tokens, then run on one worker and on two.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import torch
from ray.cluster_utils import Cluster

import pybatch
from pybatch.machine.ray_cluster import OBJECT_STORE
from pybatch.model.unweighted import read_config, stored_dtype
from pybatch.tune.fleet import Fleet, OneMachine, plan_fleet
from pybatch.tune.machines import ThisMachine
from pybatch.tune.options import Targets
from pybatch.tune.plan import plan
from pybatch.tune.simulator import Work
from pybatch.tune.workload import Workload

MODEL, PRECISION, BATCH = "smollm2-135m", "int8", 8
INPUTS, OUTPUTS = (20, 120), 32


@contextmanager
def cluster(machines: int) -> Iterator[str]:
    machine = {"num_cpus": 1, "object_store_memory": OBJECT_STORE}
    made = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **machine})
    try:
        for _ in range(machines - 1):
            made.add_node(**machine)
        yield made.address
    finally:
        import ray

        ray.shutdown()
        made.shutdown()


def job(address: str, rows: list[list[int]], outputs: int) -> float:
    """Seconds."""
    begin = time.perf_counter()
    settings = {"quantization": PRECISION, "max_num_seqs": BATCH, "num_kv_blocks": 400, "threads": 1}
    sampling = {"temperature": 0, "max_tokens": outputs, "ignore_eos": True}
    done = pybatch.run_job(rows, MODEL, ray=address, use_tqdm=False, **settings, **sampling)
    assert not any(row.get("error") for row in done)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(pybatch.__file__).parents[1])  # for workers too
    torch.set_num_threads(1)
    rng, config = random.Random(0), read_config(MODEL)
    rows = [[rng.randrange(1000, 40000) for _ in range(rng.randint(*INPUTS))] for _ in range(args.rows)]
    workload = Workload(len(rows), [Work(row, [OUTPUTS]) for row in rows])
    machine = ThisMachine(stored_dtype(MODEL))
    options = {"precisions": [PRECISION], "kv_cache_dtypes": ["auto"], "max_num_seqs": BATCH}
    made = plan(config, machine, workload, Targets(), **options)  # type: ignore[arg-type]
    point = made.options[0].points[-1]
    assert point.max_num_seqs == BATCH
    one = OneMachine(point.row_seconds, BATCH, max(0.0, point.seconds - point.row_seconds * len(rows)))
    results = []
    for machines in (1, 2):
        with cluster(machines) as address:
            startup = job(address, rows[:2], 1)
            seconds = job(address, rows, OUTPUTS)
        predicted = plan_fleet(Fleet(machines, startup), len(rows), one).typical.seconds
        results.append({"machines": machines, "startup_s": startup, "predicted_s": predicted, "measured_s": seconds})
        print(f"{machines} workers: predicted {predicted:.1f} s, took {seconds:.1f} s ({predicted / seconds - 1:+.0%})")
    if args.json:
        about = {"date": date.today().isoformat(), "model": MODEL, "precision": PRECISION, "rows": len(rows)}
        args.json.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
