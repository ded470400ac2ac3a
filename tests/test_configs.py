"""Every shipped configuration is read by the program it is for, and every model it names can be built."""

import json
from pathlib import Path

import pytest
import torch

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.evaluation.beta_sweep import SweepConfig
from modeling_alibi_gpt.evaluation.extrapolation import ExtrapolationConfig
from modeling_alibi_gpt.evaluation.perplexity import PerplexityConfig
from modeling_alibi_gpt.training.arguments import build_arguments
from modeling_alibi_gpt.training.experiment import ExperimentConfig, load_config
from modeling_alibi_gpt.training.model_setup import model_config


CONFIGS = Path(__file__).parent.parent / "configs"


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


@pytest.mark.parametrize("path", sorted((CONFIGS / "sweep").glob("*.yaml")), ids=lambda path: path.name)
def test_sweeps_are_read(path: Path) -> None:
    config = load_config(SweepConfig, str(path))
    if config.experiment is not None:
        load_config(ExperimentConfig, config.experiment)


@pytest.mark.parametrize("path", sorted((CONFIGS / "evaluation").glob("*.yaml")), ids=lambda path: path.name)
def test_evaluations_are_read(path: Path) -> None:
    if path.name == "perplexity.yaml":
        load_config(PerplexityConfig, str(path), model="runs/demo/alibi")
    elif path.name == "length_extrapolation.yaml":
        load_config(ExtrapolationConfig, str(path), models=["runs/demo/alibi"])
    else:
        load_config(ExtrapolationConfig, str(path))
