"""Fine-tuning starts from the checkpoint's weights, and a model that cannot be what was asked for is refused."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, MptConfig, MptForCausalLM
from transformers.utils import logging

from modeling_alibi_gpt import AlibiGPTForCausalLM
from modeling_alibi_gpt.data.tokenizer_files import load_tokenizer
from modeling_alibi_gpt.runtime.config import load_config
from modeling_alibi_gpt.runtime.records import read_records
from modeling_alibi_gpt.training.experiment import ExperimentConfig, ModelSection
from modeling_alibi_gpt.training.model_setup import build_model, laid_over, model_config
from modeling_alibi_gpt.training.trainer import train


MakeExperiment = Callable[..., Any]


@pytest.fixture(scope="module")
def pretrain(write_experiment: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Folder of a model trained by the tiny experiment with the given settings."""

    def pretrain(*settings: str) -> str:
        experiment_file = write_experiment(tmp_path_factory.mktemp("pretrained"))
        return train(load_config(ExperimentConfig, str(experiment_file), settings))["model_dir"]

    return functools.cache(pretrain)


@pytest.fixture
def checkpoint(pretrain: Callable[..., str]) -> str:
    return pretrain()


@pytest.fixture
def fine_tune(make_experiment: MakeExperiment, checkpoint: str) -> MakeExperiment:
    """The tiny experiment from the checkpoint."""
    return lambda *settings: make_experiment("model.config=null", f"model.checkpoint={checkpoint}", *settings)


def build(config: Any) -> Any:
    return build_model(config, load_tokenizer(config.model.checkpoint))


def test_fine_tuning_goes_on_from_the_checkpoint(fine_tune: MakeExperiment, checkpoint: str) -> None:
    pretrained = AlibiGPTForCausalLM.from_pretrained(checkpoint).state_dict()
    model = build(fine_tune())
    assert all(torch.equal(tensor, pretrained[name]) for name, tensor in model.state_dict().items())
    assert model.dtype == torch.float32

    record = train(fine_tune("training.learning_rate=1e-3"))
    before = read_records(Path(checkpoint) / "training.jsonl")[0]
    assert record["validation_nats_per_token"] < before["validation_nats_per_token"]
    assert record["loss_history"][0]["nats_per_token"] < before["loss_history"][0]["nats_per_token"] - 0.5
    vocabularies = (Path(folder, "tokenizer.json").read_text() for folder in (checkpoint, record["model_dir"]))
    assert len(set(vocabularies)) == 1


def test_generation_stops_at_the_end_token_of_the_tokenizer(
    fine_tune: MakeExperiment, checkpoint: str, tmp_path: Path
) -> None:
    """Another tokenizer replaces the special tokens of the checkpoint; its own may have several end tokens."""
    folder = shutil.copytree(checkpoint, tmp_path / "several", ignore=shutil.ignore_patterns("checkpoint-*"))
    generation = json.loads((folder / "generation_config.json").read_text()) | {"eos_token_id": [0, 7]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    assert build(fine_tune(f"model.checkpoint={folder}")).generation_config.eos_token_id == [0, 7]
    other = load_tokenizer(checkpoint)
    other.eos_token = other.pad_token = other.convert_ids_to_tokens(5)
    other.save_pretrained(tmp_path / "other")
    config = fine_tune(f"model.checkpoint={folder}", f"data.tokenizer={tmp_path / 'other'}")
    model = build_model(config, load_tokenizer(tmp_path / "other"))
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (5, 5)


@pytest.mark.parametrize(("length", "expected"), [(16, 32), (32, 32), (48, 48)])
def test_the_training_length_of_a_model_only_grows(fine_tune: MakeExperiment, length: int, expected: int) -> None:
    assert build(fine_tune(f"data.train_length_tokens={length}")).config.train_context_length == expected


def test_overrides_change_the_position_method_and_nothing_else(fine_tune: MakeExperiment, checkpoint: str) -> None:
    config = fine_tune("model.overrides.alibi_beta=2.0", "model.overrides.alibi_trainable=slopes")
    model = build(config)
    position_method = model.model.position_method
    assert torch.allclose(position_method.layer_slopes(0), 2 * torch.tensor([1 / 16, 1 / 256]), rtol=1e-6)
    pretrained = AlibiGPTForCausalLM.from_pretrained(checkpoint).state_dict()
    new = {name for name in model.state_dict() if name not in pretrained}
    assert new == {"model.position_method.bias_log_slopes"}


@pytest.mark.parametrize("position_method", ["learned", "rope", "none"])
def test_another_position_method_can_be_learned_from_there(fine_tune: MakeExperiment, position_method: str) -> None:
    record = train(fine_tune(f"model.overrides.position_method={position_method}", "training.max_steps=2"))
    assert record["position_method"] == position_method


def test_other_architectures_are_fine_tuned_too(
    make_experiment: MakeExperiment, checkpoint: str, tmp_path: Path
) -> None:
    tokenizer, folder = load_tokenizer(checkpoint), tmp_path / "mpt"
    config = MptConfig(vocab_size=len(tokenizer), d_model=16, n_heads=2, n_layers=1, max_seq_len=32)
    MptForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    fine_tuning = ("model.config=null", f"model.checkpoint={folder}")
    with pytest.raises(ValueError, match=f"{folder} does not support data.train_length_tokens = 48"):
        train(make_experiment(*fine_tuning, "data.train_length_tokens=48"))
    with pytest.raises(ValueError, match="data.isolate_documents needs a model that isolates documents by .* mpt"):
        train(make_experiment(*fine_tuning, "data.isolate_documents=true"))
    record = train(make_experiment(*fine_tuning))
    assert (record["position_method"], record["num_steps"]) == ("mpt", 10)


@pytest.mark.parametrize("model_type", ["opt", "falcon", "biogpt", "gpt2", "alibi_gpt"])
@pytest.mark.parametrize("length", [3, 32])
def test_documents_are_isolated_or_the_model_is_refused(
    fine_tune: MakeExperiment, checkpoint: str, tmp_path: Path, model_type: str, length: int
) -> None:
    """OPT, Falcon and BioGPT take position_ids, too, but do not mask by them."""
    folder = Path(checkpoint)
    if model_type != "alibi_gpt":
        folder, tokenizer = tmp_path / "other", load_tokenizer(checkpoint)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "word_embed_proj_dim": 16}
        config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), pad_token_id=0, **sizes)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    settings = f"model.checkpoint={folder}", f"data.train_length_tokens={length}"
    build(fine_tune(*settings))
    if model_type in ("gpt2", "alibi_gpt"):
        random_state = torch.get_rng_state()
        assert not build(fine_tune(*settings, "data.isolate_documents=true")).training
        assert torch.equal(torch.get_rng_state(), random_state)
    else:
        with pytest.raises(ValueError, match=f"needs a model that isolates documents by .*, got .* {model_type}:"):
            build(fine_tune(*settings, "data.isolate_documents=true"))


# What cannot be


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.train_length_tokens=33"], "does not support data.train_length_tokens = 33: learned positions end at"),
        (["model.overrides.position_method=alibi", "model.overrides.alibi_beta=0"], "alibi_beta must be a finite"),
        (["model.overrides.alibi_beta=2"], "alibi_beta would have no effect with position_method 'learned'"),
        (["model.overrides.alibi_beat=1"], "unknown key 'model.overrides.alibi_beat'; did you mean .*alibi_beta'?"),
        (
            ["model.overrides.num_hidden_layers=3"],
            r"weights that its config requires are missing \(\d+\), e.g. model.layers.2",
        ),
        (
            ["model.overrides.num_hidden_layers=1"],
            r"weights do not belong to the model in its config \(\d+\), e.g. model.layers.1",
        ),
        (["model.overrides.hidden_size=32"], "its config requires .*, but the weights have"),
        (["model.overrides.auto_map={}"], "unknown key 'model.overrides.auto_map'"),
        (["model.attn_implementation=flash_attention_2"], "'flash_attention_2' needs the package flash-attn"),
    ],
)
def test_a_checkpoint_that_cannot_be_what_was_asked_for_is_refused(
    pretrain: Callable[..., str], make_experiment: MakeExperiment, tmp_path: Path, settings: list[str], message: str
) -> None:
    folder = pretrain("model.overrides.position_method=learned")
    config = make_experiment("model.config=null", f"model.checkpoint={folder}", *settings)
    with pytest.raises(ValueError, match=message):
        train(config)
    assert not (tmp_path / "run").exists()


def test_slopes_that_start_to_learn_are_not_reported_as_missing(checkpoint: str, caplog) -> None:
    """The report of transformers would advise to train a model that computes just what it did before."""
    logging.get_logger("transformers").addHandler(caplog.handler)
    for kind in ("beta", "slopes"):
        AutoModelForCausalLM.from_pretrained(checkpoint, alibi_trainable=kind)
    assert "bias_log" not in caplog.text
    AutoModelForCausalLM.from_pretrained(checkpoint, position_method="t5")  # such weights are news
    logging.get_logger("transformers").removeHandler(caplog.handler)
    assert "position_method" in caplog.text


def test_slopes_that_a_checkpoint_says_it_learned_are_missed(pretrain: Callable[..., str], tmp_path: Path) -> None:
    folder = tmp_path / "torn"
    shutil.copytree(pretrain("model.overrides.alibi_trainable=beta"), folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.position_method.bias_log_beta"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert loading["missing_keys"] == {"model.position_method.bias_log_beta"}


def test_variants_that_choose_another_method_do_not_inherit_the_fields_of_alibi() -> None:
    base = ModelSection(config={"alibi_beta": 4.0, "num_attention_heads": 4, "hidden_size": 32}, overrides={})
    assert model_config(base).alibi_beta == 4.0
    other = model_config(dataclasses.replace(base, overrides={"position_method": "rope"}))
    assert (other.position_method, other.alibi_beta) == ("rope", 1.0)
    with pytest.raises(ValueError, match="alibi_beta would have no effect"):
        model_config(dataclasses.replace(base, overrides={"position_method": "rope", "alibi_beta": 2.0}))
    assert laid_over({"alibi_beta": 4.0, "use_bias": True}, {"position_method": "none"}) == {
        "use_bias": True,
        "position_method": "none",
    }


def test_an_override_that_trained_slopes_would_ignore_is_refused(
    pretrain: Callable[..., str], make_experiment: MakeExperiment
) -> None:
    folder = pretrain("model.overrides.alibi_trainable=beta")
    fine_tuning = ["model.config=null", f"model.checkpoint={folder}"]
    with pytest.raises(
        ValueError, match="model.overrides.alibi_beta has no effect: the checkpoint stores it as weights"
    ):
        train(make_experiment(*fine_tuning, "model.overrides.alibi_beta=2.0"))
    with pytest.raises(ValueError, match="alibi_trainable 'none' would reset what the checkpoint learned with 'beta'"):
        train(make_experiment(*fine_tuning, "model.overrides.alibi_trainable=none"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("keep", [0.0, 0.5, None])
def test_a_damaged_checkpoint_is_refused(
    make_experiment: MakeExperiment, checkpoint: str, tmp_path: Path, name: str, keep: float | None
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    path = folder / name
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ValueError, match=str(folder)):
        train(make_experiment("model.config=null", f"model.checkpoint={folder}"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"model.norm.weight": "../../../secret.safetensors"}}, "which is not a file in its folder"),
        ({"weight_map": {"model.norm.weight": "/etc/passwd"}}, "which is not a file in its folder"),
        ({"weight_map": [1]}, "not a weight index"),
        ({"weight_map": {"model.norm.weight": "model.safetensors"}}, "no metadata mapping"),
    ],
)
def test_a_hostile_index_of_a_hub_name_is_refused(
    make_experiment: MakeExperiment,
    checkpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    index: dict[str, Any],
    message: str,
) -> None:
    """Before transformers follows it, and before any folder is made: the repository is one in the Hub's cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "cache" / "models--org--name"
    snapshot = repository / "snapshots" / ("a" * 40)
    shutil.copytree(checkpoint, snapshot, ignore=shutil.ignore_patterns("checkpoint-*", "*.safetensors"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        train(make_experiment("model.config=null", "model.checkpoint=org/name"))
    assert not (tmp_path / "run").exists()


def test_a_missing_checkpoint_is_refused(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        train(make_experiment("model.config=null", f"model.checkpoint={tmp_path / 'nowhere'}"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["model.config.hiden_size=16"],
            "unknown field 'hiden_size' in AlibiGPTConfig; did you mean 'hidden_",
        ),
        (["model.config.hidden_size=wide"], "model.config: .*'hidden_size'"),
        (
            ["model.config.num_attention_heads=3"],
            r"hidden_size \(16\) must be a multiple of num_attention_heads \(3\)",
        ),
        (["model.config.alibi_beta=-1"], "beta must be a finite number above 0, got -1"),
        (["model.config.alibi_beta=.nan"], "beta must be a finite number above 0, got nan"),
        (["model.overrides.alibi_slopes=[1.0]", "model.overrides.alibi_slope_kind=custom"], "expected 2 values"),
        (["model.config.model_type=gpt2"], "model.config is of type 'gpt2', expected alibi_gpt"),
        (["model.config=missing.json"], "missing.json: no such file"),
        (["model.config.vocab_size=200"], "vocab_size must be at least 257"),
        (["model.attn_implementation=flash_attention_2"], "'flash_attention_2' needs the package flash-attn"),
        (["model.attn_implementation=sdpaa"], "sdpaa"),
    ],
)
def test_a_model_that_cannot_be_is_refused(
    make_experiment: MakeExperiment, tmp_path: Path, settings: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(make_experiment(*settings))
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_larger_than_the_model_is_refused(make_experiment: MakeExperiment, checkpoint: str) -> None:
    message = "the tokenizer has ids up to 269, but the model has 260 embeddings; set vocab_size to at least 270"
    with pytest.raises(ValueError, match=message):
        train(make_experiment(f"data.tokenizer={checkpoint}", "model.config.vocab_size=260"))
