"""Length warm-up: the same tokens in the same order, shorter sequences first, exactly resumed; and early stopping."""

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_alibi_gpt.data.packing import PackedCollator
from modeling_alibi_gpt.runtime.config import load_config
from modeling_alibi_gpt.runtime.records import read_records
from modeling_alibi_gpt.training.deterministic_trainer import DeterministicTrainer
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.length_schedule import cut_batch, scheduled_length
from modeling_alibi_gpt.training.preflight import check_experiment
from modeling_alibi_gpt.training.trainer import train
from tests.support.train_commands import exit_code, start_training


STAGES = "data.train_length_schedule=[{length_tokens: 8, num_steps: 3}, {length_tokens: 16, num_steps: 4}]"


def test_lengths_follow_one_another(make_experiment: Any) -> None:
    data = make_experiment(STAGES).data
    assert [scheduled_length(data, step) for step in range(9)] == [8] * 3 + [16] * 4 + [32] * 2
    assert scheduled_length(make_experiment().data, 0) == 32


@pytest.mark.parametrize(
    ("stage", "complaint"),
    [
        ("{length_tokens: 12, num_steps: 1}", r"divide data.train_length_tokens \(32\), got 12"),
        ("{length_tokens: 2, num_steps: 1}", "at least 3, got 2"),
        ("{length_tokens: 64, num_steps: 1}", "got 64"),
        ("{length_tokens: 8, num_steps: 0}", "num_steps' must be at least 1, got 0"),
        ("{length: 8, num_steps: 1}", "length"),
    ],
)
def test_schedules_that_cannot_be_are_refused(make_experiment: Any, stage: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make_experiment(f"data.train_length_schedule=[{stage}]")


def test_stages_that_leave_no_step_at_the_training_length_are_refused(make_experiment: Any) -> None:
    check_experiment(make_experiment(STAGES, "training.max_steps=8"))
    message = (
        "its 7 steps leave none of the {} steps that training.max_steps or .*_epochs sets for data.train_length_tok"
    )
    with pytest.raises(ValueError, match=message.format(7)):
        check_experiment(make_experiment(STAGES, "training.max_steps=7"))
    with pytest.raises(ValueError, match=message.format(4)):  # per epoch, of 14 sequences
        train(make_experiment(STAGES, "training.max_steps=-1", "training.num_train_epochs=1"))


def test_parts_hold_the_tokens_in_their_order() -> None:
    """Of documents of 5 and 3 tokens, and one of 3 with padding: each keeps to itself in the parts, too."""
    blocks = [
        {"input_ids": [1, 2, 3, 4, 5, 6, 7, 8], "position_ids": [0, 1, 2, 3, 4, 0, 1, 2]},
        {"input_ids": [9, 10, 11], "position_ids": [0, 1, 2]},
    ]
    parts = cut_batch(PackedCollator(0)(blocks), 4)
    assert parts["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 0], [0, 0, 0, 0]]
    assert parts["position_ids"].tolist() == [[0, 1, 2, 3], [0, 0, 1, 2], [0, 1, 2, 0], [0, 1, 2, 3]]
    ignored = -100
    assert parts["labels"].tolist() == [
        [ignored, 2, 3, 4],
        [5, ignored, 7, 8],
        [ignored, 10, 11, ignored],
        [ignored] * 4,
    ]
    lone = cut_batch(PackedCollator(0)([{"input_ids": [1, 2, 3, 4, 5, 6]}]), 4)
    assert lone["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]
    assert lone["labels"].tolist() == [[1, 2, 3, 4], [5, 6, ignored, ignored]]


def test_every_step_sees_as_many_tokens_and_divides_by_those_it_predicts(
    make_experiment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = DeterministicTrainer.compute_loss

    def spy(self: DeterministicTrainer, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if model.training:
            seen.append((tuple(inputs["input_ids"].shape), int(kwargs["num_items_in_batch"])))
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(DeterministicTrainer, "compute_loss", spy)
    record = train(make_experiment(STAGES, "global_batch_size=2", "data.max_train_tokens=448", "training.max_steps=9"))
    assert record["num_train_tokens"] == 9 * 64
    assert seen == [((8, 8), 56)] * 3 + [((4, 16), 60)] * 4 + [((2, 32), 62)] * 2


def test_a_killed_training_goes_on_at_the_length_of_its_step(experiment_file: Path) -> None:
    folder = experiment_file.parent
    assert exit_code(start_training(experiment_file, STAGES, f"training.output_dir={folder / 'straight'}")) == 0
    killed = start_training(experiment_file, STAGES, killed_at="open checkpoint-8/trainer_state.json")
    assert exit_code(killed) == -signal.SIGKILL
    assert exit_code(start_training(experiment_file, STAGES)) == 0
    assert read_records(folder / "run" / "training.jsonl")[0]["resumed_from"] == "checkpoint-4"
    straight, resumed = ((folder / name / "model.safetensors").read_bytes() for name in ("straight", "run"))
    assert straight == resumed


EVALUATED = ["training.eval_strategy=steps", "training.eval_steps=2", "training.save_steps=2"]
# Nothing improves by a million nats: the first evaluation is the best, and the third after it the last.
STOPPED = [*EVALUATED, "early_stopping.patience_evaluations=3", "early_stopping.min_improvement_nats=1.0e6"]


def test_a_training_stops_early(make_experiment: Any) -> None:
    record = train(make_experiment(*STOPPED))
    assert record["num_steps"] == 8


@pytest.mark.parametrize("killed_at", ["open checkpoint-6/trainer_state.json", "os.mkdir .saving"])
@pytest.mark.parametrize("at_start", [[], ["training.eval_on_start=true"]], ids=["", "evaluated at its start"])
def test_a_killed_training_stops_where_the_straight_one_does(
    experiment_file: Path, killed_at: str, at_start: list[str]
) -> None:
    """Patience is counted across the kill; one killed after it had stopped trains no more."""
    folder, settings = experiment_file.parent, [*STOPPED, *at_start]
    assert exit_code(start_training(experiment_file, *settings, f"training.output_dir={folder / 'straight'}")) == 0
    killed = start_training(experiment_file, *settings, killed_at=killed_at)
    assert exit_code(killed) == -signal.SIGKILL
    assert exit_code(start_training(experiment_file, *settings)) == 0
    records = [read_records(folder / name / "training.jsonl")[0] for name in ("straight", "run")]
    assert [record["num_steps"] for record in records] == [8, 8]
    assert records[1]["resumed_from"] is not None
    straight, resumed = ((folder / name / "model.safetensors").read_bytes() for name in ("straight", "run"))
    assert straight == resumed


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["early_stopping.patience_evaluations=1"], "early_stopping needs evaluations: set training.eval_strategy"),
        ([*STOPPED, "early_stopping.patience_evaluations=0"], "must be at least 1, got 0"),
        ([*STOPPED, "early_stopping.min_improvement_nats=-1.0"], r"must be at least 0, got -1\.0"),
        ([*STOPPED, "training.metric_for_best_model=bleu"], "must be one of loss, nats_per_token"),
        (
            [*STOPPED, "training.restore_callback_states_from_checkpoint=false"],
            "restore_callback_states_from_checkpoint cannot be False with early_stopping",
        ),
    ],
)
def test_early_stopping_that_could_not_work_is_refused(
    make_experiment: Any, settings: list[str], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        train(make_experiment(*settings))


def test_chunked_loss_trains_what_the_whole_loss_does(make_experiment: Any, tmp_path: Path) -> None:
    """SGD: Adam makes a whole step of a gradient that is all rounding."""
    settings = ["training.optim=sgd", "training.logging_steps=1", "training.save_strategy=no"]
    whole = train(make_experiment(*settings, f"training.output_dir={tmp_path / 'whole'}"))
    chunked = train(make_experiment(*settings, f"training.output_dir={tmp_path / 'chunked'}", "loss_chunk_tokens=50"))
    tolerance = 2 * 124 * torch.finfo(torch.float32).eps  # terms of one sign, in another order
    losses = [[entry["nats_per_token"] for entry in record["loss_history"]] for record in (chunked, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    assert json.loads((tmp_path / "chunked" / "experiment.json").read_text())["loss_chunk_tokens"] == 50


def test_the_shipped_warm_up_differs_from_its_reference_in_length_alone() -> None:
    experiments = Path(__file__).parents[2] / "configs" / "experiment"
    warm, constant = (
        load_config(ExperimentConfig, str(experiments / f"{name}.yaml"))
        for name in ("gutenberg_length_warmup", "gutenberg")
    )
    data = dataclasses.replace(warm.data, train_length_schedule=None)
    training = {**warm.training, "output_dir": constant.training["output_dir"]}
    assert dataclasses.replace(warm, name=constant.name, data=data, training=training) == constant
    lengths = [scheduled_length(warm.data, step) for step in range(warm.training["max_steps"])]
    assert lengths == [32] * 250 + [64] * 250 + [128] * 500
