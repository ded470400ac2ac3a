"""Milestones: figures along a training that leave it as it was, at lengths that a model may not reach."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_alibi_gpt.runtime.records import check_record, read_records, write_records
from modeling_alibi_gpt.training.dry_run import dry_run
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.trainer import train


MakeExperiment = Callable[..., ExperimentConfig]
SETTINGS = ("milestones.steps=[0,4,10]", "milestones.lengths_tokens=[32,64]")


def test_the_text_is_read_at_every_step_and_length(make_experiment: MakeExperiment) -> None:
    record = train(make_experiment(*SETTINGS))
    rows = read_records(Path(record["model_dir"], "milestones.jsonl"))
    for row in rows:
        check_record(row)
    assert [(row["step"], row["protocol"], row["length_tokens"]) for row in rows] == [
        (step, protocol, length)
        for step in (0, 4, 10)
        for protocol in ("nonoverlapping", "sliding")
        for length in (32, 64)
    ]
    assert [row["num_train_tokens"] for row in rows[::4]] == [0, 4 * 4 * 32, 10 * 4 * 32]
    assert rows[-4]["nats_per_token"] == record["validation_nats_per_token"]
    assert rows[-4]["nats_per_token"] < rows[0]["nats_per_token"]


def test_the_seed_is_that_of_the_training_even_by_default(make_experiment: MakeExperiment) -> None:
    config = make_experiment(*SETTINGS, "training.max_steps=4", "milestones.steps=[4]")
    del config.training["seed"]
    record = train(config)
    rows = read_records(Path(record["model_dir"], "milestones.jsonl"))
    assert {row["provenance"]["seed"] for row in rows} == {record["seed"]} == {42}


def test_measuring_changes_nothing(make_experiment: MakeExperiment) -> None:
    """With every dropout on, so that a random number drawn in between would show."""
    plain = train(make_experiment())["model_dir"]
    measured = train(make_experiment(*SETTINGS, f"training.output_dir={plain}-measured"))["model_dir"]
    one, other = (load_file(Path(folder, "model.safetensors")) for folder in (plain, measured))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_table_that_ends_is_a_result(make_experiment: MakeExperiment) -> None:
    record = train(make_experiment(*SETTINGS, "model.overrides.position_method=learned"))
    rows = read_records(Path(record["model_dir"], "milestones.jsonl"))
    assert all((row["error"] is None) == (row["length_tokens"] == 32) for row in rows)
    assert "learned positions end" in rows[1]["error"]


def test_what_is_measured_is_not_measured_again(make_experiment: MakeExperiment) -> None:
    """A run that was killed in the middle of a milestone, and again: only what is missing is measured."""
    config = make_experiment(*SETTINGS)
    path = Path(config.training["output_dir"], "milestones.jsonl")
    train(config)
    rows = read_records(path)
    for file in Path(config.training["output_dir"]).iterdir():
        if file.is_file() and file.name not in ("experiment.json", "data.json", "milestones.jsonl"):
            file.unlink()
    measured_twice = [*rows[:-2], *rows[-4:-2]]
    write_records(path, measured_twice)
    train(config)
    again = read_records(path)
    assert again[: len(rows)] == measured_twice
    assert [row["nats_per_token"] for row in again[len(rows) :]] == [row["nats_per_token"] for row in rows[-2:]]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("milestones.steps=[3,3]", "different numbers"),
        ("milestones.steps=[-1]", "at least 0"),
        ("milestones.lengths_tokens=[]", "at least 1"),
        ("milestones.lengths_tokens=[32,32]", "milestones.lengths_tokens must be different numbers"),
        ("milestones.steps=[4,11]", "milestones.steps: step 11 is beyond the 10 steps that training.max_steps or"),
        ("milestones.lengths_tokens=[5000]", "a window of 5000 needs 5001"),
    ],
)
def test_impossible_milestones_are_refused(make_experiment: MakeExperiment, setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(make_experiment(*SETTINGS, setting))


def test_milestones_beyond_the_epochs_are_refused_before_the_first_step(make_experiment: MakeExperiment) -> None:
    """14 sequences make 4 steps per epoch."""
    settings = ["training.max_steps=-1", "training.num_train_epochs=2", "milestones.lengths_tokens=[32]"]
    config = make_experiment(*settings, "milestones.steps=[0, 9]")
    message = (
        "milestones.steps: step 9 is beyond the 8 steps that training.max_steps or training.num_train_epochs sets"
    )
    for start in (train, dry_run):
        with pytest.raises(ValueError, match=message):
            start(config)
    assert not Path(config.training["output_dir"], "milestones.jsonl").exists()
    train(make_experiment(*settings, "milestones.steps=[0, 8]"))
    assert len(read_records(Path(config.training["output_dir"], "milestones.jsonl"))) == 4
