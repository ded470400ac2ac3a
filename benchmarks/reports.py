"""What ``alibi-gpt report`` takes over many records: CPU seconds and memory, in a process of its own."""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.timing import status_bytes
from modeling_alibi_gpt.runtime.records import Record, provenance, read_records, write_records


ROOT = Path(__file__).resolve().parents[1]
STUDY, COMPARISON = "results/demo_cpu2_20261126.jsonl", "results/methods_gutenberg_cpu2_20261121.jsonl"
NUM_RECORDS, TRIALS_PER_STUDY = 20_000, 1000


def measure_reports(num_records: int = NUM_RECORDS) -> Iterator[Record]:
    """``report_cost`` records: of studies with 1,000 trials each, and of one comparison with many seeds."""
    makers: dict[str, Callable[[int], list[Record]]] = {"studies": trials, "one comparison": comparison}
    for name, make in makers.items():
        with tempfile.TemporaryDirectory(prefix="alibi-gpt-reports-") as folder:
            records = make(num_records)
            write_records(Path(folder, "records.jsonl"), records)
            command = [sys.executable, "-m", "benchmarks.reports", folder]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        common = {"kind": "report_cost", "rows_of": name, "num_records": len(records)}
        yield {**common, **figures, "provenance": provenance()}


def trials(num_records: int) -> list[Record]:
    """Studies of beta, like that of the demo but with more trials."""
    demo = next(record for record in read_records(ROOT / STUDY) if record["kind"] == "beta_trial")
    records = []
    for number in range(num_records):
        study, trial = divmod(number, TRIALS_PER_STUDY)
        log_beta = 8 * trial / TRIALS_PER_STUDY - 4
        nats = 5 + 0.01 * log_beta**2 + 0.001 * study
        place = {"study": f"study {study}", "trial": trial, "beta": 2**log_beta}
        records.append(demo | place | _loss(nats) | {"nats_per_token_by_seed": [nats]})
    return records


def comparison(num_records: int) -> list[Record]:
    """The comparison of methods on Gutenberg with more seeds than it has: about so many records."""
    from modeling_alibi_gpt.experiments.paired import comparison_records

    [corpus], rows = _split(read_records(ROOT / COMPARISON))
    first = min(row["seed"] for row in rows)
    of_first = [row for row in rows if row["seed"] == first]
    num_seeds = max(2, round(num_records / len(of_first)) - 1)  # the cells are about as many as one seed has rows
    grown = [_with_seed(row, seed) for seed in range(num_seeds) for row in of_first]
    return [corpus, *grown, *comparison_records(grown, reference="alibi")]


def _split(records: list[Record]) -> tuple[list[Record], list[Record]]:
    rows = [record for record in records if record["kind"] not in ("corpus", "comparison")]
    return [record for record in records if record["kind"] == "corpus"], rows


def _with_seed(row: Record, seed: int) -> Record:
    """A row as another seed might have given it."""
    row = json.loads(json.dumps(row)) | {"seed": seed}  # records of a file share nothing
    return row if row.get("nats_per_token") is None else row | _loss(row["nats_per_token"] + 0.001 * seed)


def _loss(nats: float) -> dict[str, float]:
    return {"nats_per_token": nats, "perplexity": math.exp(nats)}


def _report(folder: Path) -> dict[str, Any]:
    """Build the report of a folder's records as the command does, and say what it took since the process began."""
    from alibi_gpt_cli.main import main
    from modeling_alibi_gpt.report import report, written_page  # noqa: F401  what the command imports

    memory_before = status_bytes("VmHWM")
    if main(["report", "--records", str(folder / "records.jsonl"), "--output-dir", str(folder)]):
        raise RuntimeError("the report failed")
    return {
        "num_figures": len(list((folder / "figures").iterdir())),
        "cpu_seconds": time.process_time(),
        "memory_before_bytes": memory_before,
        "peak_memory_bytes": status_bytes("VmHWM"),
        "html_bytes": (folder / "report.html").stat().st_size,
    }


if __name__ == "__main__":
    print(json.dumps(_report(Path(sys.argv[1]))))  # noqa: T201
