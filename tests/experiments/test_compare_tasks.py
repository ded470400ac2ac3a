"""A comparison of models that learn a task: answers by length and depth, and a report of them."""

from pathlib import Path
from typing import Any

import pytest

from modeling_alibi_gpt.experiments.compare import ComparisonConfig, run_comparison
from modeling_alibi_gpt.report.report import build_report
from modeling_alibi_gpt.runtime.config import build_config
from modeling_alibi_gpt.runtime.records import read_checked_records
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.trainer import train


@pytest.fixture
def settings(corpus: Path, tmp_path: Path, one_thread: None) -> dict[str, Any]:
    return {
        "name": "tiny",
        "experiment": {
            "name": "base",
            "model": {
                "config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 202}
            },
            "data": {"source": "task:recall,questions=2,examples=32", "train_length_tokens": 16},
            "global_batch_size": 8,
            "training": {"output_dir": "unused", "max_steps": 2, "logging_steps": 1, "save_steps": 1},
        },
        "variants": {"alibi": {}, "table": {"position_method": "learned"}},
        "reference": "alibi",
        "seeds": [0, 1],
        "evaluation": {
            "source": "task:recall,questions=2",
            "lengths_tokens": [16, 32],
            "depths": [0.0, 1.0],
            "num_examples": 5,
        },
        "output_dir": str(tmp_path / "out"),
    }


def test_every_variant_answers_at_every_length_and_depth(settings: dict[str, Any], tmp_path: Path) -> None:
    records = run_comparison(ComparisonConfig(**settings))
    assert read_checked_records(tmp_path / "out" / "comparison.jsonl") == records
    answers = [record for record in records if record["kind"] == "recall"]
    assert [(r["variant"], r["seed"], r["length_tokens"], r["depth"]) for r in answers] == [
        (variant, seed, length, depth)
        for seed in (0, 1)
        for variant in ("alibi", "table")
        for length in (16, 32)
        for depth in (0.0, 1.0)
    ]
    beyond = [r["error"] for r in answers if (r["variant"], r["length_tokens"]) == ("table", 32)]
    assert all("learned positions end" in error for error in beyond) and len(beyond) == 4
    assert run_comparison(ComparisonConfig(**settings)) == records

    paths = build_report(records, tmp_path / "report", title="T")
    page = Path(paths["markdown"]).read_text(encoding="utf-8")
    assert "## Associative recall, tiny" in page and "2 training runs each" in page
    assert [Path(path).name for path in paths["figures"]] == ["tiny_recall_task_recall_questions_2.png"]


def test_a_task_that_diverges_in_its_last_step_saves_no_model(settings: dict[str, Any], tmp_path: Path) -> None:
    training = settings["experiment"]["training"] | {
        "output_dir": str(tmp_path / "run"),
        "learning_rate": 1e30,
        "max_grad_norm": 0.0,
        "max_steps": 1,
    }
    config = build_config(ExperimentConfig, settings["experiment"] | {"training": training})
    with pytest.raises(ValueError, match=r"the loss is \S+ nats per token, which gives no finite perplexity"):
        train(config)
    assert not {"model.safetensors", "README.md"} & {path.name for path in (tmp_path / "run").iterdir()}


def test_the_settings_of_texts_are_refused(settings: dict[str, Any]) -> None:
    settings["evaluation"] = {"source": "task:recall", "protocols": ["sliding"]}
    with pytest.raises(ValueError, match="unknown key 'evaluation.protocols'"):
        run_comparison(ComparisonConfig(**settings))


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"lengths_tokens": [16, 5]}, "task:recall needs at least 10 tokens per sequence, got 5"),
        (
            {"source": "task:recall,questions=6", "lengths_tokens": None},
            "needs at least 22 tokens per sequence, got 16",
        ),
        ({"source": "task:copy"}, "evaluation.source must be the task of the training, task:recall, got 'task:copy'"),
        ({"source": "prompt:passkey"}, "evaluation.source must be the task of the training"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused_before_anything_is_trained(
    settings: dict[str, Any], tmp_path: Path, evaluation: dict[str, Any], message: str
) -> None:
    settings["evaluation"] |= evaluation
    with pytest.raises(ValueError, match=message):
        run_comparison(ComparisonConfig(**settings))
    assert not (tmp_path / "out").exists()
