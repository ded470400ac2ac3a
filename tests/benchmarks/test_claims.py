"""A trial of a shared study costs at most in proportion to the finished trials, and a job few reads of the study."""

from pathlib import Path
from typing import Any

import optuna
import pytest

from benchmarks.claims import SAMPLINGS, SIZES, FreeObjective, claims_at, measure_claims
from modeling_alibi_gpt.experiments.storage import open_storage
from modeling_alibi_gpt.experiments.study import open_study
from modeling_alibi_gpt.experiments.sweep import run_trials
from modeling_alibi_gpt.experiments.sweep_config import SweepConfig
from modeling_alibi_gpt.runtime.records import check_record, read_records


ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_benchmark_measures_both_ways_to_share_a_study() -> None:
    records = list(measure_claims(num_trials=20, num_workers=2))
    for record in records:
        check_record(record)
    assert [(record["sampling"], record["num_finished"]) for record in records] == [(way, 10) for way in SAMPLINGS]


def test_claims_are_those_with_about_as_many_trials() -> None:
    assert claims_at([(4, 1.0), (5, 2.0), (10, 3.0), (11, 4.0)], 10) == [2.0, 3.0]


def test_a_job_reads_the_study_as_often_in_a_long_grid_as_in_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate of what is left asks for every job that waits, and must not read the storage for each."""
    num_reads = 0
    read = optuna.Study.get_trials

    def counted(*args: Any, **settings: Any) -> Any:
        nonlocal num_reads
        num_reads += 1
        return read(*args, **settings)

    monkeypatch.setattr(optuna.Study, "get_trials", counted)
    reads_per_job = []
    for num_trials in (4, 16):
        config = SweepConfig(
            mode="posthoc",
            checkpoint="unused",
            output_dir=str(tmp_path / str(num_trials)),
            betas=[float(number) for number in range(1, num_trials + 1)],
        )
        study = open_study("beta", open_storage(config.storage_url), FreeObjective.settings)
        num_reads = 0
        run_trials(config, FreeObjective(), study, None)
        assert len(study.finished()) == num_trials
        reads_per_job.append((num_reads - 1) / num_trials)
    assert reads_per_job[0] == reads_per_job[1]


def test_the_record_grows_no_faster_than_linearly() -> None:
    [path] = (ROOT / "results").glob("claims_*.jsonl")
    records = list(read_records(path))
    for sampling in SAMPLINGS:
        seconds = {row["num_finished"]: row["seconds"] for row in records if row["sampling"] == sampling}
        assert tuple(seconds) == SIZES
        for fewer, more in zip(SIZES, SIZES[1:], strict=False):
            assert seconds[more] <= seconds[fewer] * more / fewer
