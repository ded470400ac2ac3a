"""The model card of a run: figures from the record, no place on this machine, and the license of the checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from modeling_alibi_gpt.runtime.config import build_config
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.finished import finished_record
from modeling_alibi_gpt.training.trainer import train
from modeling_alibi_gpt.training.training_card import _hub_names, _results, _source


MakeExperiment = Callable[..., ExperimentConfig]


def test_the_figures_are_those_of_the_record(make_experiment: MakeExperiment) -> None:
    record = train(make_experiment("training.max_steps=2"))
    run = Path(record["model_dir"])
    card = ModelCard.load(run / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert (card.data.license, card.data.base_model, card.data.tags) == (None, None, ["alibi"])
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert measured["perplexity"] == record["validation_perplexity"]
    assert measured["bits_per_byte"] == record["validation_bits_per_byte"]
    for part in (
        f"# {record['name']}",
        f"| parameters | {record['num_parameters']:,} |",
        f"{record['num_train_tokens']:,} tokens in 2 steps, sequences of 32 tokens",
        f"{record['validation_perplexity']:.4g}, {record['validation_nats_per_token']:.4f} nats per token",
        f"fingerprint `{record['provenance']['data_fingerprint']}`",
        "positions `alibi`, β 1",
        "import modeling_alibi_gpt",
    ):
        assert part in card.text


def test_a_card_names_no_place_and_may_be_edited(make_experiment: MakeExperiment) -> None:
    config = make_experiment("training.max_steps=2")
    record = train(config)
    run = Path(record["model_dir"])
    path = run / "README.md"
    text = path.read_text(encoding="utf-8")
    assert str(run.parent) not in text and str(config.data.source).removeprefix("text:") not in text
    path.write_text(text.replace("---\n", "---\nlicense: mit\n", 1), encoding="utf-8")
    assert finished_record(run) == record
    assert train(config) == record
    assert ModelCard.load(path).data.license == "mit"


def test_a_fine_tuned_model_keeps_the_license(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    checkpoint = Path(train(make_experiment("training.max_steps=2"))["model_dir"])
    (checkpoint / "README.md").write_text(
        "---\nlicense: other\nlicense_name: mine\nbase_model: me/first\n---\n# First\n", encoding="utf-8"
    )
    (checkpoint / "LICENSE").write_text("terms", encoding="utf-8")
    start = ("model.config=null", f"model.checkpoint={checkpoint}", "data.tokenizer=null")
    end = ("training.max_steps=2", f"training.output_dir={tmp_path / 'second'}")
    run = Path(train(make_experiment(*start, *end))["model_dir"])
    card = ModelCard.load(run / "README.md")
    assert (card.data.license, card.data.license_name, card.data.base_model) == ("other", "mine", "me/first")
    assert (run / "LICENSE").read_text(encoding="utf-8") == "terms"
    assert "# First" not in card.text


@pytest.mark.parametrize(
    ("source", "words", "datasets"),
    [
        ("stdlib", "source code of Python's standard library", []),
        ("text:/home/me/*.txt", "local files (`text:`)", []),
        ("hub:wikitext:wikitext-2-raw-v1@main", "`hub:wikitext:wikitext-2-raw-v1@main`", ["wikitext"]),
        ("task:copy", "`task:copy`", []),
        (
            [{"source": "hub:me/books", "weight": 3.0}, {"source": "text:/home/me/a.txt", "weight": 1.0}],
            "0.75 `hub:me/books` + 0.25 local files (`text:`)",
            ["me/books"],
        ),
    ],
)
def test_sources_in_words(source: object, words: str, datasets: list[str]) -> None:
    data = {"source": source, "train_length_tokens": 32}
    values = {"name": "run", "model": {"checkpoint": "x"}, "data": data, "training": {"output_dir": "out"}}
    config = build_config(ExperimentConfig, values)
    assert _source(config) == words
    assert _hub_names(config) == datasets


def test_figures_are_of_the_text_that_was_read(make_experiment: MakeExperiment) -> None:
    config = make_experiment("data.source=hub:me/web", "data.validation_source=hub:me/books:all")
    record = {"validation_perplexity": 20.0, "validation_bits_per_byte": None}
    (result,) = _results(config, record)
    assert (result.dataset_name, result.dataset_type) == ("`hub:me/books:all`", "me/books")
    config = make_experiment("data.source=hub:me/web", "data.validation_source=text:/home/me/*.txt")
    (result,) = _results(config, record)
    assert (result.dataset_name, result.dataset_type) == ("local files (`text:`)", "text")
    assert _hub_names(config) == ["me/web"], "trained on"
