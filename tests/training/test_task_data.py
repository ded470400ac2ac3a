"""A training on a task: its own tokenizer, a loss on answers alone, and settings of texts that are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from modeling_alibi_gpt.checkpoints.load import load_causal_lm
from modeling_alibi_gpt.data.tasks import NUM_VALIDATION_EXAMPLES, task_tokenizer
from modeling_alibi_gpt.runtime.config import load_config
from modeling_alibi_gpt.runtime.records import read_checked_records
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.prepared_data import prepare_data
from modeling_alibi_gpt.training.trainer import train


@pytest.fixture
def make_task(corpus: Path, tmp_path: Path, one_thread: None) -> Callable[..., ExperimentConfig]:
    values = {
        "name": "task",
        "model": {"config": {"vocab_size": 202, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}},
        "data": {"source": "task:passkey,digits=2,examples=64", "train_length_tokens": 16},
        "global_batch_size": 8,
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 4, "logging_steps": 2, "save_steps": 2},
    }
    return lambda *settings: load_config(ExperimentConfig, None, settings, **values)


def test_the_record_is_of_the_answers(make_task: Callable[..., ExperimentConfig], tmp_path: Path) -> None:
    config = make_task()
    record = train(config)
    assert record["num_validation_tokens"] == 2 * NUM_VALIDATION_EXAMPLES
    assert record["validation_bits_per_byte"] is None
    assert read_checked_records(tmp_path / "run" / "training.jsonl")[0] == record
    rows, model = prepare_data(config).validation, load_causal_lm(tmp_path / "run")
    ids = torch.tensor(rows["input_ids"])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, -3:-1].double()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -2:].flatten()).item()
    assert record["validation_nats_per_token"] == pytest.approx(expected, abs=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "run").get_vocab() == task_tokenizer().get_vocab()
    assert train(config) == record  # found again


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.source=task:sort", "unknown task 'task:sort'"),
        ("data.train_length_tokens=6", "task:passkey needs at least 7 tokens per sequence, got 6"),
        ("data.tokenizer=train", "data.tokenizer applies to texts"),
        ("data.validation_source=stdlib", "data.validation_source applies to texts"),
        (
            "data.train_length_schedule=[{length_tokens: 8, num_steps: 1}]",
            "data.train_length_schedule applies to texts",
        ),
        ("data.max_train_tokens=100", "data.max_train_tokens applies to texts"),
        ("model.config.vocab_size=201", "the model has 201 embeddings; set vocab_size to at least 202"),
        ("milestones={steps: [0], lengths_tokens: [16]}", "milestones need a text"),
    ],
)
def test_what_a_task_has_not_is_refused(
    make_task: Callable[..., ExperimentConfig], tmp_path: Path, setting: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(make_task(setting))
    assert not (tmp_path / "run").exists()
