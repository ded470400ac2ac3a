"""Accuracy by length and depth: a model that is known to answer, prompts for any tokenizer, and rows that resume."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from alibi_gpt_cli.main import main
from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.data.tasks import task_tokenizer
from modeling_alibi_gpt.evaluation import grid
from modeling_alibi_gpt.evaluation.passkey_prompt import passkey_prompts
from modeling_alibi_gpt.evaluation.recall import RecallConfig, run_recall
from modeling_alibi_gpt.evaluation.scoring import score_tails
from modeling_alibi_gpt.report.context_tables import recall_table
from modeling_alibi_gpt.report.tables import table_text
from modeling_alibi_gpt.runtime.records import read_checked_records


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("task") / "alibi"
    torch.manual_seed(0)
    config = AlibiGPTConfig(
        vocab_size=202, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, train_context_length=32
    )
    AlibiGPTForCausalLM(config).save_pretrained(folder)
    task_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def config(task_folder: str, tmp_path: Path) -> RecallConfig:
    return RecallConfig(
        models=[task_folder],
        source="task:recall,questions=2",
        lengths_tokens=[64, 32],
        depths=[0.0, 1.0],
        num_examples=9,
        output=str(tmp_path / "rows.jsonl"),
    )


def test_scores_of_tails_are_those_of_the_whole_sequence(task_folder: str) -> None:
    model = grid.load_causal_lm(task_folder)
    ids = torch.randint(202, (5, 21), generator=torch.Generator().manual_seed(0))
    logits = model(input_ids=ids).logits[:, -5:-1].double()
    expected = torch.nn.functional.cross_entropy(logits.mT, ids[:, -4:], reduction="none").detach().numpy()
    for batch_tokens in (16384, 40, 7):  # all at once, some at a time, and in chunks that keep keys and values
        nats, is_right = score_tails(model, ids, 4, batch_tokens=batch_tokens)
        np.testing.assert_allclose(nats, expected, rtol=0, atol=2e-5)
        assert (is_right == (logits.argmax(-1) == ids[:, -4:]).numpy()).all()


def test_a_model_that_answers_is_right_and_one_that_does_not_is_wrong(
    config: RecallConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every third example the scores say that it is right."""

    def score(model: object, sequences: np.ndarray, num_scored: int, **_: object) -> tuple[np.ndarray, np.ndarray]:
        shape = (len(sequences), num_scored)
        right = np.ones(shape, dtype=bool)
        right[np.arange(len(sequences)) % 3 != 0, -1] = False
        return np.full(shape, 0.5), right

    monkeypatch.setattr("modeling_alibi_gpt.evaluation.recall.score_tails", score)
    rows = run_recall(dataclasses.replace(config, source="task:passkey,digits=4"))
    assert [row["accuracy"] for row in rows] == pytest.approx([1 / 3] * 4)
    assert [row["token_accuracy"] for row in rows] == pytest.approx([(4 + 3 + 3) / 12] * 4)
    assert {(row["num_answer_tokens"], row["nats_per_token"]) for row in rows} == {(4, 0.5)}


def test_there_is_a_row_for_every_length_and_depth(config: RecallConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run_recall(config)
    assert [(row["length_tokens"], row["depth"]) for row in rows] == [(32, 0.0), (32, 1.0), (64, 0.0), (64, 1.0)]
    assert [row["distance_tokens"] for row in rows] == [28, 3, 60, 3]
    assert all(0 <= row["accuracy"] <= 1 and row["nats_per_token"] == pytest.approx(5.3, abs=0.3) for row in rows)
    assert read_checked_records(config.output) == rows
    lines = table_text(recall_table(rows)).splitlines()
    assert lines[0].split() == ["model", "depth", "32", "64"] and len(lines) == 3
    monkeypatch.setattr(grid, "load_causal_lm", None)
    assert run_recall(config) == rows


@pytest.mark.parametrize(
    "change", [{"num_examples": 8}, {"seed": 1}, {"source": "task:recall,questions=3"}, {"dtype": "bfloat16"}]
)
def test_what_changed_is_measured_again(config: RecallConfig, change: dict) -> None:
    rows = run_recall(config)
    again = run_recall(dataclasses.replace(config, **change))
    assert len(read_checked_records(config.output)) == 2 * len(rows)
    assert [row["nats_per_token"] for row in again] != [row["nats_per_token"] for row in rows]


def test_copying_has_one_row_a_length(config: RecallConfig) -> None:
    rows = run_recall(dataclasses.replace(config, source="task:copy", lengths_tokens=None))
    assert [(row["length_tokens"], row["depth"]) for row in rows] == [(32 * n, None) for n in (1, 2, 4, 8, 16)]
    assert [row["num_answer_tokens"] for row in rows] == [15, 31, 63, 127, 255]


def test_prompts_ask_any_model_and_one_that_fails_says_why(make_folder, config: RecallConfig) -> None:
    models = [make_folder("alibi"), make_folder("learned")]
    prompts = dataclasses.replace(config, models=models, source="prompt:passkey", lengths_tokens=[1200])
    alibi, _, learned, _ = run_recall(prompts)
    assert alibi["error"] is None and alibi["source"] == "prompt:passkey"
    assert "learned positions end at train_context_length = 16" in learned["error"]
    assert learned["accuracy"] is None
    read_checked_records(config.output)


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_prompts_are_as_long_as_asked_and_end_in_their_number(tokenizer, depth: float) -> None:
    length = 1300
    ids, num_answer, distance = passkey_prompts(tokenizer, 6, length, depth, seed=0)
    assert ids.shape == (6, length)
    for row in ids:
        text, answer = tokenizer.decode(row), tokenizer.decode(row[-num_answer:])
        assert text.startswith("Somewhere in this text") and text.endswith(f"The passkey is{answer}")
        assert answer.strip().isdecimal() and text.count(f"{answer.strip()} is the passkey.") == 1
        where = tokenizer.decode(row[: length - num_answer - int(distance)])
        assert where.endswith("The passkey is")
    farthest, nearest = (passkey_prompts(tokenizer, 1, length, end, seed=0)[2] for end in (0.0, 1.0))
    assert distance == pytest.approx(farthest + depth * (nearest - farthest), abs=20)  # to half a sentence
    assert len({tuple(row[-num_answer:]) for row in ids}) == 6


def test_prompts_need_their_own_words(tokenizer) -> None:
    with pytest.raises(ValueError, match=r"the passkey prompt needs \d+ tokens, got a length of 30"):
        passkey_prompts(tokenizer, 1, 30, 0.5, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "stdlib"}, "source must be task:NAME or prompt:passkey, got 'stdlib'"),
        ({"source": "task:sort"}, "unknown task"),
        ({"depths": [0.5, 1.5]}, r"'depths\[1\]' must be at most 1, got 1.5"),
        ({"depths": []}, "depths must be a list of one or more different values"),
        ({"num_examples": 0}, "'num_examples' must be at least 1, got 0"),
        ({"lengths_tokens": [32, 8]}, "task:recall needs at least 10 tokens per sequence, got 8"),
        ({"models": ["/nowhere"]}, "/nowhere: no model here"),
    ],
)
def test_impossible_grids_are_refused_before_anything_is_written(
    config: RecallConfig, monkeypatch: pytest.MonkeyPatch, settings: dict, message: str
) -> None:
    monkeypatch.setattr(grid, "load_causal_lm", None)
    with pytest.raises(ValueError, match=message):
        run_recall(dataclasses.replace(config, **settings))
    assert not Path(config.output).exists()


def test_a_model_that_learned_no_task_is_told_what_asks_it(make_folder, config: RecallConfig) -> None:
    with pytest.raises(ValueError, match="was not trained on a task; use prompt:passkey"):
        run_recall(dataclasses.replace(config, models=[make_folder("alibi")]))


def test_the_command_ends_with_the_rows_in_short(config: RecallConfig, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recall", "--models", *config.models, "--data", config.source, "--lengths", "32", "64"]
    words += ["--output", config.output, "--set", "num_examples=5", "--set", "depths=[0.0, 0.5]", "--json"]
    assert main(words) == 0
    *_, last = capsys.readouterr().out.splitlines()
    rows = read_checked_records(config.output)
    fields = ("name", "length_tokens", "depth", "accuracy", "token_accuracy", "error")
    assert json.loads(last)["rows"] == [{field: row[field] for field in fields} for row in rows]
    assert main(["recall", "--models", *config.models]) == 2
    assert capsys.readouterr().err == "error: key 'source' is missing\n"
