"""A dry run says what the training then does, and leaves no trace in its folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from alibi_gpt_cli.main import main
from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.data.corpora import load_documents
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer
from modeling_alibi_gpt.training import dry_run as dry_run_module
from modeling_alibi_gpt.training.dry_run import dry_run, parameters_by_part
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.trainer import train


MakeExperiment = Callable[..., ExperimentConfig]
EVALUATED = ("training.eval_strategy=steps",)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("training.max_steps=-1", "training.num_train_epochs=1.5", "training.gradient_accumulation_steps=2"),
        (
            *EVALUATED,
            "training.eval_steps=4",
            "training.load_best_model_at_end=true",
            "training.report_to=tensorboard",
        ),
        (*EVALUATED, "early_stopping.patience_evaluations=9"),
    ],
)
def test_it_says_what_the_training_does(settings: tuple[str, ...], make_experiment: MakeExperiment) -> None:
    config = make_experiment(*settings)
    plan = dry_run(config)
    run = Path(config.training["output_dir"])
    assert not run.exists()
    record = train(config)
    for field in ("num_parameters", "num_steps", "train_length_tokens", "num_train_tokens"):
        assert plan[field] == record[field]
    assert plan["num_text_tokens"] == 14 * 32
    assert plan["num_epochs"] == record["num_train_tokens"] / (14 * 32)
    assert (plan["device"], plan["precision"], plan["num_timed_steps"]) == ("cpu", "float32", 3)
    assert plan["train_seconds"] == plan["seconds_per_step"] * plan["num_steps"] > 0


def test_a_stream_has_no_number_of_tokens(
    experiment_file: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = f"text:{corpus}/*.txt", experiment_file.parent / "tokenizer"
    train_tokenizer(load_documents(source, "all"), 270).save_pretrained(folder)
    held_out = experiment_file.parent / "held-out.txt"
    held_out.write_text("A text that is not trained on.\n" * 200, encoding="utf-8")
    settings = ("streaming=true", "max_train_tokens=null", f"validation_source=text:{held_out}", f"tokenizer={folder}")
    command = ["train", "--config", str(experiment_file), "--dry-run", "--json"]
    for setting in settings:
        command += ["--set", f"data.{setting}"]
    assert main(command) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    plan = json.loads(last)
    assert (plan["num_text_tokens"], plan["num_epochs"], plan["num_train_tokens"]) == (None, None, 10 * 4 * 32)
    assert "  read from a stream, whose length is unknown" in lines


def test_memory(make_experiment: MakeExperiment) -> None:
    plan = dry_run(make_experiment())
    weights = 4 * plan["num_parameters"]
    assert plan["gradients_bytes"] == weights
    assert weights < plan["weights_bytes"] <= 1.01 * weights  # with the slopes
    num_tensors = len(list(AlibiGPTForCausalLM(AlibiGPTConfig(**make_experiment().model.config)).parameters()))
    assert plan["optimizer_bytes"] == 2 * weights + 4 * num_tensors  # Adam's two moments and a count of steps
    assert plan["peak_memory_bytes"] is None


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing(make_experiment: MakeExperiment) -> None:
    eager = "model.attn_implementation=eager"
    sizes = [dry_run(make_experiment(eager, f"global_batch_size={size}"))["activations_bytes"] for size in (2, 4, 6)]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] > 0
    # At least the probabilities of each layer and the logits, in float32.
    assert (sizes[1] - sizes[0]) / 2 > 4 * (2 * 2 * 32 * 32 + 31 * 270)
    fewer = dry_run(make_experiment(eager, "training.activation_checkpointing=true"))["activations_bytes"]
    assert fewer < sizes[1]


def test_a_slow_step_is_the_last(make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run_module, "MAX_SECONDS", 0.0)
    plan = dry_run(make_experiment("training.max_steps=1000"))
    assert (plan["num_timed_steps"], plan["num_steps"]) == (1, 1000)


def test_precision_is_measured_but_not_written(make_experiment: MakeExperiment) -> None:
    config = make_experiment("precision=auto")
    assert dry_run(config)["precision"] in ("float32", "bfloat16")
    assert not Path(config.training["output_dir"]).exists()


def test_what_the_training_refuses_is_refused(make_experiment: MakeExperiment) -> None:
    config = make_experiment()
    run = Path(config.training["output_dir"])
    run.mkdir()
    (run / "letter.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is not empty and is not a run folder"):
        dry_run(config)
    with pytest.raises(ValueError, match="nonsense is not a valid OptimizerNames"):
        dry_run(make_experiment("training.optim=nonsense"))


SIZES = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
OURS = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: AlibiGPTForCausalLM(AlibiGPTConfig(**OURS)), "embeddings norms attention mlp"),
        (
            lambda: AlibiGPTForCausalLM(AlibiGPTConfig(**OURS, position_method="t5", qk_norm=True)),
            "embeddings norms attention mlp positions",
        ),
        (
            lambda: AlibiGPTForCausalLM(AlibiGPTConfig(**OURS, tie_word_embeddings=False)),
            "embeddings norms attention mlp output",
        ),
        (lambda: GPT2LMHeadModel(GPT2Config(**SIZES, n_embd=16, n_layer=2, n_head=2)), "positions norms"),
        (lambda: BloomForCausalLM(BloomConfig(**SIZES, hidden_size=16, n_layer=2, n_head=2)), "norms mlp attention"),
    ],
)
def test_every_parameter_has_its_part(make: Callable[[], PreTrainedModel], parts: str) -> None:
    with torch.device("meta"):
        model = make()
    numbers = parameters_by_part(model)
    assert set(numbers) >= set(parts.split()) and "other" not in numbers
    assert sum(numbers.values()) == model.num_parameters()
    assert numbers["embeddings"] == 64 * 16


def test_the_command_prints_it_for_people_and_for_programs(
    experiment_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", str(experiment_file), "--dry-run", "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    plan = json.loads(last)
    assert lines[0] == f"tiny: {plan['num_parameters']:,} parameters"
    assert "10 steps of 4 sequences of 32 tokens: 1,280 tokens" in lines
    assert lines[-1] == "nothing was trained, and the output folder is untouched"
    assert [path.name for path in experiment_file.parent.iterdir()] == ["experiment.yaml"]
