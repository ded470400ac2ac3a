"""Budgets that share a trunk: each is, to the last bit, what a training with its schedule is by itself."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeling_alibi_gpt.experiments import compare, runner
from modeling_alibi_gpt.experiments.budgets import train_from_trunk
from modeling_alibi_gpt.experiments.compare import ComparisonConfig, _runs, known_predictions, run_comparison
from modeling_alibi_gpt.experiments.paired import comparison_records
from modeling_alibi_gpt.runtime.records import check_record, read_records
from modeling_alibi_gpt.training.trainer import train
from tests.support.sweep_cases import tiny_experiment
from tests.training.test_resume import outcome


BUDGETS = [5, 10, 20]  # whose cool-downs begin at 4, 8 and 16


@pytest.fixture
def settings(tmp_path: Path, one_thread: None) -> dict[str, Any]:
    experiment = tiny_experiment(tmp_path, warmup_steps=2, save_steps=6, logging_steps=2)
    experiment["model"]["config"]["attention_dropout"] = 0.1
    return {
        "name": "tiny",
        "experiment": experiment,
        "variants": {"beta 1": {}, "beta 4": {"alibi_beta": 4}},
        "reference": "beta 1",
        "seeds": [0],
        "budgets_steps": BUDGETS,
        "evaluation": {
            "source": experiment["data"]["source"],
            "max_tokens": 100,
            "lengths_tokens": [16],
            "protocols": ["nonoverlapping"],
        },
        "output_dir": str(tmp_path / "out"),
    }


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many optimizer steps each call of ``train`` made, in their order; finished trainings make none."""
    made: list[int] = []
    train = runner.train

    def count(*args: Any, callbacks: Any = (), **kwargs: Any) -> dict[str, Any]:
        counter = _Counter()
        try:
            return train(*args, callbacks=[*callbacks, counter], **kwargs)
        finally:
            made.append(counter.num_steps)

    monkeypatch.setattr(runner, "train", count)
    return made


class _Counter(runner.TrainerCallback):
    num_steps = 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.num_steps += 1


def test_a_budget_is_the_training_that_it_says_and_nothing_is_trained_twice(
    settings: dict[str, Any], tmp_path: Path, steps: list[int]
) -> None:
    config = ComparisonConfig(**settings)
    records = run_comparison(config)
    # For each variant the trunk and a cool-down: 4 and 1, then 4 more and 2, then 8 more and 4.
    assert [made for made in steps if made] == [4, 1, 4, 1, 4, 2, 4, 2, 8, 4, 8, 4]
    for run in _runs(config):
        alone = tmp_path / "alone" / f"{run.variant}-{run.budget_steps}"
        schedule = run.experiment.training
        assert schedule["lr_scheduler_type"] == "warmup_stable_decay" and schedule["max_steps"] == run.budget_steps
        train(dataclasses.replace(run.experiment, training={**schedule, "output_dir": str(alone)}))
        assert outcome(alone) == outcome(run.model_dir)
    assert not list((tmp_path / "out").rglob("checkpoint-*")) and not (tmp_path / "out" / "trunks").exists()

    for record in records:
        check_record(record)
    assert read_records(tmp_path / "out" / "comparison.jsonl") == records
    cells = [record for record in records if record["kind"] == "comparison"]
    assert [(cell["budget_tokens"], cell["variant"]) for cell in cells] == [
        (budget * 4 * 16, variant) for budget in BUDGETS for variant in ("beta 1", "beta 4")
    ]
    assert {cell["comparison"] for cell in cells} == {"tiny, 320 tokens", "tiny, 640 tokens", "tiny, 1,280 tokens"}
    assert {record["series"] for record in records if record["kind"] in ("training", "extrapolation")} == {"tiny"}
    trained = {r["budget_tokens"]: r["num_train_tokens"] for r in records if r["kind"] == "training"}
    assert trained == {320: 320, 640: 640, 1280: 1280}

    steps.clear()
    again = run_comparison(config)
    assert not any(steps)
    assert [r for r in again if r["kind"] == "comparison"][0]["nats_per_token"] == cells[0]["nats_per_token"]


def test_a_comparison_that_is_killed_goes_on(
    settings: dict[str, Any], tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in every part, it makes only those steps again that were not saved."""
    settings["variants"] = {"beta 1": {}}
    config = ComparisonConfig(**settings)
    straight = run_comparison(dataclasses.replace(config, output_dir=str(tmp_path / "straight")))
    steps.clear()
    step_end = _Counter.on_step_end
    total = 0

    def interrupt_at(number: int) -> Callable[..., None]:
        def on_step_end(self: _Counter, *args: Any, **kwargs: Any) -> None:
            nonlocal total
            step_end(self)
            total += 1
            if total == number:
                raise KeyboardInterrupt

        return on_step_end

    for number in (3, 9, 12, 25):
        monkeypatch.setattr(_Counter, "on_step_end", interrupt_at(number))
        with pytest.raises(KeyboardInterrupt):
            run_comparison(config)
    monkeypatch.setattr(_Counter, "on_step_end", step_end)
    records = run_comparison(config)
    assert sum(steps) == 4 + 1 + 4 + 2 + 8 + 4 + 3 + 1 + 1 + 1, "lost: 3 steps, and 1 each since the checkpoint before"
    nats = [[r["nats_per_token"] for r in each if r["kind"] == "extrapolation"] for each in (straight, records)]
    assert nats[0] == nats[1] and len(nats[0]) == len(BUDGETS)


def test_a_larger_budget_that_comes_later_is_the_same_too(settings: dict[str, Any], tmp_path: Path) -> None:
    config = ComparisonConfig(**{**settings, "variants": {"beta 1": {}}})
    run_comparison(dataclasses.replace(config, budgets_steps=BUDGETS[:2]))
    later = run_comparison(config)
    at_once = run_comparison(dataclasses.replace(config, output_dir=str(tmp_path / "at once")))
    nats = [[r["nats_per_token"] for r in each if r["kind"] == "extrapolation"] for each in (later, at_once)]
    assert nats[0] == nats[1]


def test_a_shared_training_needs_no_trunk(settings: dict[str, Any], tmp_path: Path, steps: list[int]) -> None:
    settings |= {"variants": {"beta 1": {}}, "budgets_steps": [5], "trainings_dir": str(tmp_path / "trainings")}
    run_comparison(ComparisonConfig(**settings))
    assert steps == [4, 1]
    steps.clear()
    run_comparison(ComparisonConfig(**{**settings, "output_dir": str(tmp_path / "another")}))
    assert steps == [0]


def test_a_damaged_end_of_a_trunk_is_named(settings: dict[str, Any], tmp_path: Path) -> None:
    run = _runs(ComparisonConfig(**{**settings, "variants": {"beta 1": {}}}))[0]
    train_from_trunk(run.experiment, run.trunk)
    shutil.rmtree(run.model_dir)
    checkpoint = Path(run.trunk[0].training["output_dir"]) / "checkpoint-4"
    (checkpoint / "optimizer.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot resume from .*checkpoint-4: optimizer.pt has 0 bytes"):
        train_from_trunk(run.experiment, run.trunk)
    shutil.rmtree(checkpoint.parent)
    train_from_trunk(run.experiment, run.trunk)
    shutil.rmtree(run.model_dir)
    Path(tmp_path, "words.txt").write_text("other words " * 500, encoding="utf-8")
    with pytest.raises(ValueError, match="contains a run on other documents"):
        train_from_trunk(run.experiment, run.trunk)


def cells(num_budgets: int) -> list[dict[str, Any]]:
    """Of budgets of 64 tokens and four times as many each: the best beta is 16, then half of that in each."""
    records = []
    for budget in range(num_budgets):
        rows = []
        for log_beta in range(-1, 7):
            fields = {} if log_beta == 0 else {"alibi_beta": 2.0**log_beta}
            labels = {
                "comparison": f"tiny {budget}",
                "variant": f"{log_beta}",
                "name": f"{log_beta}",
                "fields": fields,
            }
            where = {"protocol": "sliding", "length_tokens": 8, "stride_tokens": 2, "train_context_length": 8}
            what = {"kind": "extrapolation", "reading": "as trained", "overrides": {}, "position_method": "alibi"}
            nats = 4 + 0.1 * (log_beta - 4 + budget) ** 2
            figures = {"nats_per_token": nats, "error": None, "provenance": {"data_fingerprint": "0"}}
            rows += [{"seed": seed, **labels, **where, **what, **figures} for seed in (0, 1)]
        found = comparison_records(rows, reference="0")
        records += [cell | {"series": "tiny", "budget_tokens": 64 * 4**budget} for cell in found]
    return records


def test_a_budget_is_predicted_once_before_it_is_read(tmp_path: Path) -> None:
    assert known_predictions(tmp_path, cells(2), 64 * 4**2) == [], "two points are on every power law"
    [prediction] = known_predictions(tmp_path, cells(3), 64 * 4**3)
    assert prediction["from_budgets_tokens"] == [64, 256, 1024]
    assert prediction["beta"] == pytest.approx(2.0) and prediction["beta_ends"] == pytest.approx([2.0, 2.0])
    assert prediction["provenance"]["git_commit"] and prediction["provenance"]["time_utc"]
    assert known_predictions(tmp_path, cells(4), 64 * 4**3) == [prediction], "what was said stays"
    assert read_records(tmp_path / "predictions.jsonl") == [prediction]
    with pytest.raises(ValueError, match="1,024 tokens cannot be predicted: one of 4,096 was already evaluated"):
        known_predictions(tmp_path, cells(4), 1024)


def test_a_budget_that_was_read_is_not_predicted(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    def note(folder: Path, records: Any, budget_tokens: int | None) -> list[Any]:
        asked.append(budget_tokens)
        return []

    monkeypatch.setattr(compare, "known_predictions", note)
    config = ComparisonConfig(**{**settings, "variants": {"beta 1": {}}})
    run_comparison(config)
    assert asked == [640, 1280, None]
    asked.clear()
    run_comparison(config)
    assert asked == [None]


def test_a_worker_that_is_late_keeps_the_records_of_later_budgets(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ComparisonConfig(**{**settings, "variants": {"beta 1": {}}})
    records = run_comparison(config)
    written, write = [], compare.write_records

    def note(path: Path, found: list[Any]) -> None:
        written.append(found)
        write(path, found)

    monkeypatch.setattr(compare, "write_records", note)
    assert [record["kind"] for record in run_comparison(config)] == [record["kind"] for record in records]
    assert [len(found) for found in written] == [len(records)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budgets_steps": []}, r"ascending numbers of at least 2, got \[\]"),
        ({"budgets_steps": [10, 5]}, r"ascending numbers of at least 2, got \[10, 5\]"),
        ({"cooldown_share": 1.0}, "cooldown_share must be above 0 and below 1, got 1.0"),
        ({"budgets_steps": [6]}, "cool-down of a budget begins at step 5, which must be a multiple of"),
        ({"experiment_overrides": ["training.warmup_steps=0.1"]}, "warmup_steps must be an integer of at most 4"),
        ({"experiment_overrides": ["training.warmup_steps=5"]}, "warmup_steps must be an integer of at most 4"),
        ({"experiment_overrides": ["precision=auto"]}, "a comparison needs one precision for all its trainings"),
        ({"experiment_overrides": ["alibi_beta_schedule={start: 2, end: 1}"]}, "alibi_beta_schedule cannot be used"),
        ({"experiment_overrides": ["milestones={steps: [1], lengths_tokens: [8]}"]}, "milestones cannot be used"),
        (
            {"experiment_overrides": ["early_stopping={patience_evaluations: 1}", "training.eval_strategy=steps"]},
            "early_stopping cannot be used",
        ),
        ({"experiment_overrides": ["training.save_strategy=no"]}, "need training.save_strategy"),
        (
            {"variants": {"beta 1": {"training.max_steps": 3}}},
            "training.max_steps cannot be set: it follows from budg",
        ),
    ],
)
def test_budgets_that_cannot_share_a_trunk_are_refused(
    settings: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_comparison(ComparisonConfig(**(settings | change)))
    assert not (tmp_path / "out").exists()
