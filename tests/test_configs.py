"""Every shipped configuration is read by the program it is for, and every model it names can be built."""

import json
import math
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.evaluation.context import ContextConfig
from modeling_alibi_gpt.evaluation.extrapolation import ExtrapolationConfig
from modeling_alibi_gpt.evaluation.perplexity import PerplexityConfig
from modeling_alibi_gpt.evaluation.recall import RecallConfig
from modeling_alibi_gpt.experiments.compare import _runs
from modeling_alibi_gpt.experiments.comparison_config import ComparisonConfig
from modeling_alibi_gpt.experiments.sweep import SweepConfig
from modeling_alibi_gpt.runtime.config import load_config
from modeling_alibi_gpt.training.arguments import build_arguments
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.model_setup import model_config
from modeling_alibi_gpt.training.trainer import train


CONFIGS = Path(__file__).parent.parent / "configs"
EVALUATIONS = {  # by the schema that the first line of the file names
    "context": ContextConfig,
    "evaluation": PerplexityConfig,
    "extrapolation": ExtrapolationConfig,
    "recall": RecallConfig,
}


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)


@pytest.mark.parametrize("path", sorted((CONFIGS / "model").glob("*.json")), ids=lambda path: path.name)
def test_models_can_be_built(path: Path) -> None:
    fields = json.loads(path.read_text(encoding="utf-8"))
    assert fields.pop("model_type") == "alibi_gpt"
    with torch.device("meta"):
        assert AlibiGPTForCausalLM(AlibiGPTConfig(**fields)).num_parameters() > 0


@pytest.mark.parametrize("path", sorted((CONFIGS / "experiment").glob("*.yaml")), ids=lambda path: path.name)
def test_experiments_are_read(path: Path, tmp_path: Path) -> None:
    config = load_config(ExperimentConfig, str(path), [f"training.output_dir={tmp_path}"])
    build_arguments(config)
    if config.model.config is not None:
        assert model_config(config.model).position_method == "alibi"


def test_the_model_of_the_paper_has_its_shape() -> None:
    """247 million parameters in the paper, whose adaptive inputs are smaller than a table of 50,257 rows."""
    config = load_config(ExperimentConfig, str(CONFIGS / "experiment" / "paper_wt103.yaml"))
    with torch.device("meta"):
        model = AlibiGPTForCausalLM(model_config(config.model))
    layers = model.model.layers
    assert (len(layers), *layers[0].mlp.up_proj.weight.shape) == (16, 4096, 1024)
    assert model.num_parameters() - model.model.embed_tokens.weight.numel() == pytest.approx(201.5e6, rel=1e-3)
    tokens_per_step = config.global_batch_size * config.data.train_length_tokens
    assert config.training["max_steps"] * tokens_per_step == pytest.approx(205 * 103.2e6, rel=0.01)  # epochs x words


@pytest.mark.slow
def test_the_model_of_the_paper_trains(tmp_path: Path) -> None:
    """Four steps on one sequence of the sources of Python."""
    overrides = {
        **{"data.source": "stdlib", "data.tokenizer": "train", "data.max_validation_tokens": 1024},
        **{"data.max_train_tokens": 512, "global_batch_size": 1, "training.max_steps": 4, "training.logging_steps": 1},
        **{"training.warmup_steps": 1, "training.output_dir": str(tmp_path), "training.eval_strategy": "no"},
        "training.save_strategy": "no",
    }
    path = str(CONFIGS / "experiment" / "paper_wt103.yaml")
    record = train(load_config(ExperimentConfig, path, [f"{key}={value}" for key, value in overrides.items()]))
    losses = [entry["nats_per_token"] for entry in record["loss_history"]]
    assert losses[0] == pytest.approx(math.log(50257), abs=0.5)  # of an untrained model
    assert losses[3] < losses[0] - 0.5


@pytest.mark.parametrize("path", sorted((CONFIGS / "sweep").glob("*.yaml")), ids=lambda path: path.name)
def test_sweeps_are_read(path: Path) -> None:
    config = load_config(SweepConfig, str(path))
    if config.experiment is not None:
        load_config(ExperimentConfig, config.experiment)


@pytest.mark.parametrize("path", sorted((CONFIGS / "evaluation").glob("*.yaml")), ids=lambda path: path.name)
def test_evaluations_are_read(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    config_class = EVALUATIONS[Path(text.splitlines()[0]).stem]
    models = {"model": "runs/demo/alibi"} if config_class is PerplexityConfig else {"models": ["runs/demo/alibi"]}
    load_config(config_class, str(path), **({} if "\nmodels:" in text else models))


@pytest.mark.parametrize("size", [128, 256])
def test_the_main_table_reports_on_books_that_chose_nothing(size: int) -> None:
    """The screen and the selection read one validation book, the table the two others."""
    folder = CONFIGS / "comparison"
    screen, main = (
        load_config(ComparisonConfig, str(folder / f"{name}.yaml"))
        for name in ("screen_gutenberg", f"main_gutenberg_{size}")
    )
    books = ("5231-the-way-we-live-now.txt.gz", "599-vanity-fair.txt.gz", "996-don-quixote.txt.gz")
    (validation,) = {_validation_source(config) for config in (screen, main)}
    chosen_on, reported_on = (_matching(source, books) for source in (validation, main.evaluation["source"]))
    assert chosen_on == _matching(screen.evaluation["source"], books) == [books[1]]
    assert reported_on == [books[0], books[2]]


def _validation_source(config: ComparisonConfig) -> str:
    return load_config(ExperimentConfig, str(config.experiment), config.experiment_overrides).data.validation_source


def _matching(source: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if fnmatch(f"data/gutenberg/valid/{name}", source.removeprefix("text:"))]


@pytest.mark.parametrize("task", ["copy", "passkey", "recall"])
def test_comparisons_of_tasks_ask_for_what_they_train(task: str) -> None:
    config = load_config(ComparisonConfig, str(CONFIGS / "comparison" / f"{task}.yaml"))
    for run in _runs(config):
        (evaluation,) = run.evaluations.values()
        assert isinstance(evaluation, RecallConfig)
        assert evaluation.source == run.experiment.data.source == f"task:{task}"
        lengths = evaluation.lengths_tokens or []
        assert [length / run.experiment.data.train_length_tokens for length in lengths] == [1, 2, 4, 8, 16]
