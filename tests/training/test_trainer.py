"""What a run leaves behind, and what it says when it cannot be."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from modeling_alibi_gpt import AlibiGPTForCausalLM
from modeling_alibi_gpt.evaluation.perplexity import PerplexityConfig, evaluate_perplexity
from modeling_alibi_gpt.runtime.records import check_record, read_records
from modeling_alibi_gpt.training.arguments import build_arguments
from modeling_alibi_gpt.training.deterministic_trainer import DeterministicTrainer
from modeling_alibi_gpt.training.experiment import DataSection, ExperimentConfig
from modeling_alibi_gpt.training.model_setup import build_model
from modeling_alibi_gpt.training.prepared_data import _validation_documents, prepare_data, training_documents
from modeling_alibi_gpt.training.trainer import make_trainer, train
from tests.support.train_commands import load_script


MakeExperiment = Callable[..., ExperimentConfig]
EPS = torch.finfo(torch.float32).eps


def test_a_run_leaves_a_model_a_tokenizer_and_a_record(make_experiment: MakeExperiment) -> None:
    config = make_experiment()
    record = train(config)
    run = Path(record["model_dir"])
    check_record(record)
    assert read_records(run / "training.jsonl")[0] == record
    assert (record["num_steps"], record["num_train_tokens"], record["resumed_from"]) == (10, 10 * 4 * 32, None)
    assert [entry["step"] for entry in record["loss_history"]] == [2, 4, 6, 8, 10]

    model, tokenizer = AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    assert model.num_parameters() == record["num_parameters"]
    assert (model.config.train_context_length, model.config.use_cache, model.dtype) == (32, True, torch.float32)
    special = [getattr(model.config, f"{name}_token_id") for name in ("bos", "eos", "pad")]
    assert special == 3 * [tokenizer.eos_token_id]
    measured = evaluate_perplexity(
        PerplexityConfig(
            model=str(run), source=config.data.source, split="validation", length_tokens=32, max_tokens=300
        )
    )
    for field in ("nats_per_token", "perplexity", "bits_per_byte"):
        assert record[f"validation_{field}"] == measured[field]
    assert record["num_validation_tokens"] == measured["num_tokens"] == 300


def test_the_result_generates_text(make_experiment: MakeExperiment) -> None:
    run = train(make_experiment("training.max_steps=2"))["model_dir"]
    generate = pipeline("text-generation", model=run, device="cpu")
    [result] = generate("plan window", max_new_tokens=8, do_sample=False)
    assert result["generated_text"].startswith("plan window") and len(result["generated_text"]) > len("plan window")


def test_a_finished_run_is_not_trained_again(make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_experiment("training.max_steps=2")
    record = train(config)
    files = {path: path.stat().st_mtime_ns for path in Path(record["model_dir"]).rglob("*")}
    monkeypatch.setattr(DeterministicTrainer, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    monkeypatch.setattr("modeling_alibi_gpt.training.trainer.prepare_data", lambda config: pytest.fail("read again"))
    assert train(config) == record
    assert {path: path.stat().st_mtime_ns for path in Path(record["model_dir"]).rglob("*")} == files


def test_evaluations_and_tensorboard(make_experiment: MakeExperiment) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = ["report_to=tensorboard", "eval_strategy=steps", "eval_steps=4", "per_device_eval_batch_size=3"]
    record = train(make_experiment(*(f"training.{setting}" for setting in settings)))
    [events] = Path(record["model_dir"]).glob("runs/*/events.*")
    scalars = EventAccumulator(str(events)).Reload()
    assert [event.step for event in scalars.Scalars("train/loss")] == [2, 4, 6, 8, 10]
    assert [event.value for event in scalars.Scalars("train/loss")] == pytest.approx(
        [entry["nats_per_token"] for entry in record["loss_history"]], rel=1e-6
    )
    assert [event.step for event in scalars.Scalars("eval/nats_per_token")] == [4, 8, 10]


def test_a_smoothed_loss_is_not_recorded_as_nats_per_token(make_experiment: MakeExperiment) -> None:
    config = make_experiment("training.label_smoothing_factor=0.5", "training.max_steps=2")
    assert train(config)["loss_history"] == []


def test_the_best_model_is_that_of_the_lowest_loss(make_experiment: MakeExperiment) -> None:
    settings = ["eval_strategy=steps", "eval_steps=2", "save_steps=2", "load_best_model_at_end=true"]
    settings += ["metric_for_best_model=nats_per_token", "learning_rate=3.0", "lr_scheduler_type=constant"]
    record = train(make_experiment(*(f"training.{setting}" for setting in settings)))
    run = Path(record["model_dir"])
    history = json.loads((run / "checkpoint-10" / "trainer_state.json").read_text())["log_history"]
    evaluations = {entry["step"]: entry["eval_nats_per_token"] for entry in history if "eval_loss" in entry}
    best = min(evaluations, key=evaluations.__getitem__)
    assert best != 10, "this learning rate must diverge, or the test shows nothing"
    weights, best_weights = (load_file(folder / "model.safetensors") for folder in (run, run / f"checkpoint-{best}"))
    assert all(torch.equal(weights[name], best_weights[name]) for name in best_weights)


def test_evaluation_counts_every_token_once(make_experiment: MakeExperiment) -> None:
    # Batches of 4 blocks, the last of which is shorter; a mean of means would weigh its tokens more.
    config = make_experiment("training.per_device_eval_batch_size=4")
    arguments, data = build_arguments(config), prepare_data(config)
    trainer = make_trainer(config, arguments, build_model(config, data.tokenizer), data)
    lengths = [len(ids) for ids in data.validation["input_ids"]]
    assert len(lengths) % 4 and len(set(lengths)) == 2
    nats = 0.0
    for block in data.validation["input_ids"]:
        ids = torch.tensor([block])
        with torch.no_grad():
            nats += trainer.model.eval()(input_ids=ids, labels=ids).loss.item() * (len(block) - 1)
    expected = nats / (sum(lengths) - len(lengths))
    assert trainer.evaluate()["eval_nats_per_token"] == pytest.approx(expected, rel=sum(lengths) * EPS)


def test_autocast_to_bfloat16_is_in_force(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    precise = train(make_experiment(f"training.output_dir={tmp_path / 'float32'}"))
    rounded = train(make_experiment("precision=bfloat16"))
    assert (precise["bf16"], rounded["bf16"]) == (False, True)
    first, first_rounded = precise["loss_history"][0], rounded["loss_history"][0]
    assert first_rounded != first
    # Two roundings to 8 bits lie between a hidden state and its logit.
    assert first_rounded["nats_per_token"] == pytest.approx(first["nats_per_token"], rel=2 * 2**-8)
    assert {tensor.dtype for tensor in load_file(tmp_path / "run" / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["beta", "slopes"])
def test_slopes_learn_stay_positive_and_are_saved(make_experiment: MakeExperiment, kind: str) -> None:
    settings = [f"model.overrides.alibi_trainable={kind}", "model.overrides.alibi_beta=0.5"]
    # A rate that takes exp(-1) off a slope in a step, from which no sum of steps gets to 0.
    run = train(make_experiment(*settings, "training.learning_rate=1.0", "training.max_steps=4"))["model_dir"]
    model = AlibiGPTForCausalLM.from_pretrained(run)
    slopes = torch.stack([model.model.position_method.layer_slopes(layer) for layer in range(2)])
    start = model.config.base_alibi_slopes()
    assert (slopes > 0).all() and ((slopes - start).abs() > 0.05 * start).all()
    assert not torch.equal(slopes[0], slopes[1]), "every layer learns its own"
    if kind == "beta":
        assert torch.allclose(slopes / start, (slopes / start)[:, :1], rtol=4 * EPS), "one factor for all heads"
    stored = load_file(Path(run) / "model.safetensors")[f"model.position_method.bias_log_{kind}"]
    assert torch.equal(stored, getattr(model.model.position_method, f"bias_log_{kind}"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["trainings={}"], "unknown key 'trainings'; did you mean 'training'?"),
        (
            ["training.lerning_rate=1e-3"],
            "unknown key 'training.lerning_rate'; did you mean 'training.learning_rate'?",
        ),
        (["training.save_steps=5"], "training.save_steps (5) must be a multiple of training.logging_steps (2)"),
        (["data.source=text:/nowhere/*.txt"], "no file matches '/nowhere/*.txt'"),
        (["data.source=hub"], "unknown source 'hub'"),
        (
            [
                *(f"data.max_{split}_tokens=null" for split in ("train", "validation")),
                "data.train_length_tokens=100000",
            ],
            "training text: the corpus is too small",
        ),
        (
            ["data.max_validation_tokens=8"],
            "data.max_validation_tokens must be at least data.train_length_tokens (32)",
        ),
        (["data.tokenizer=nowhere"], "no tokenizer could be loaded from 'nowhere'"),
        (["model.config=null", "model.checkpoint=/nowhere"], "model.checkpoint /nowhere: "),
        (["model.config.vocab_size=100"], "vocab_size must be at least 257"),
        (["training.output_dir=experiment.yaml"], "experiment.yaml"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    experiment_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(experiment_file.parent)
    command = ["--config", experiment_file.name]
    for setting in settings:
        command += ["--set", setting]
    assert load_script().main(command) == 2
    captured = capsys.readouterr()
    [error] = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert message in error and captured.err.endswith(f"{error}\n")
    assert captured.out == ""
    assert [path.name for path in experiment_file.parent.iterdir()] == ["experiment.yaml"]


def test_another_experiment_in_the_folder_is_refused(
    experiment_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--config", str(experiment_file), "--set", "training.max_steps=2"]
    assert load_script().main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["kind"], result["num_steps"]) == ("training", 2)
    assert load_script().main([*command, "--set", "model.config.alibi_beta=2.0"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "run contains another run, with different values of model.config.alibi_beta; choose another" in error


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_training_that_diverges_ends_before_its_weights_are_saved(
    make_experiment: MakeExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str], accumulation: int
) -> None:
    settings = ["learning_rate=1e9", "max_grad_norm=0", f"gradient_accumulation_steps={accumulation}", "save_steps=2"]
    config = make_experiment(*(f"training.{setting}" for setting in settings))
    message = r"^the loss is nan at step \d+: expected a finite loss; try a lower learning rate$"
    with pytest.raises(ValueError, match=message) as caught:
        train(config)
    step = int(re.search(r"step (\d+)", str(caught.value))[1])
    assert f"step {step}/10 | loss nan" in capsys.readouterr().out
    assert all(int(path.name.partition("-")[2]) < step for path in (tmp_path / "run").glob("checkpoint-*"))
    assert not (tmp_path / "run" / "training.jsonl").exists()


def test_what_is_trained_on_is_no_validation_source(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    rows = "\n".join(json.dumps({"text": f"document {number}"}) for number in range(100))
    path = tmp_path / "corpus" / "train.jsonl"
    path.write_text(rows, encoding="utf-8")
    for source in (f"hub:{tmp_path / 'corpus'}", f"jsonl:{path}"):
        with pytest.raises(ValueError, match=f"{source} is also data.source and has no validation split"):
            prepare_data(make_experiment(f"data.source={source}", f"data.validation_source={source}"))
    (tmp_path / "corpus" / "validation.jsonl").write_text(rows, encoding="utf-8")
    source = f"hub:{tmp_path / 'corpus'}"
    prepare_data(make_experiment(f"data.source={source}", f"data.validation_source={source}"))


@pytest.mark.parametrize("validation", ["corpus/b.txt", "./corpus/*.txt", "held/../corpus/?.txt", "held/link.txt"])
@pytest.mark.parametrize("how", ["read", "streamed", "mixed"])
def test_a_file_is_not_both_trained_on_and_validated_on(
    make_experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: str, how: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("corpus/a.txt", "corpus/b.txt", "held/c.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(f"{name} has lines of text.\n" * 200, encoding="utf-8")
    Path("held/link.txt").symlink_to(tmp_path / "corpus" / "b.txt")
    source = "text:corpus/*.txt"
    mixture = [{"source": "text:held/c.txt", "weight": 1}, {"source": source, "weight": 1}]
    settings = [f"data.source={json.dumps(mixture)}" if how == "mixed" else f"data.source={source}"]
    if how == "streamed":
        prepare_data(make_experiment(f"data.source={source}")).tokenizer.save_pretrained("tokenizer")
        settings += ["data.streaming=true", "data.max_train_tokens=null", "data.tokenizer=tokenizer"]
    message = rf"data.validation_source text:\S+ and data.source both read {tmp_path}/corpus/[ab].txt, so"
    with pytest.raises(ValueError, match=message):
        prepare_data(make_experiment(*settings, f"data.validation_source=text:{validation}"))
    if how != "mixed":
        prepare_data(make_experiment(*settings, "data.validation_source=text:held/c.txt"))


@pytest.mark.parametrize("train_split", ["all", "train+validation", "validation", "train+validation[:50%]"])
def test_a_validation_split_is_not_trained_on(
    make_experiment: MakeExperiment, tmp_path: Path, train_split: str
) -> None:
    source = f"hub:{tmp_path / 'corpus'}"
    (tmp_path / "corpus").mkdir()
    for name in ("train", "validation", "test"):
        rows = "\n".join(json.dumps({"text": f"document {number} of {name}"}) for number in range(50))
        (tmp_path / "corpus" / f"{name}.jsonl").write_text(rows, encoding="utf-8")
    mixture = [{"source": "stdlib", "weight": 1}, {"source": source, "weight": 1, "train_split": train_split}]
    of_source = [f"data.source={source}", f"data.train_split={train_split}"]
    for settings in (of_source, [*of_source, f"data.validation_source={source}"], [f"data.source={mixture}"]):
        with pytest.raises(ValueError, match=re.escape(f"data.train_split {train_split!r} contains the validation")):
            prepare_data(make_experiment(*settings))
    (tmp_path / "held.txt").write_text("Another text validates.\n" * 20, encoding="utf-8")
    prepare_data(make_experiment(*of_source, f"data.validation_source=text:{tmp_path / 'held.txt'}"))
    (tmp_path / "corpus" / "validation.jsonl").unlink()
    if train_split == "all":  # without a validation split, a share of it is held out
        prepare_data(make_experiment(*of_source))


def test_files_that_validate_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"document {number}"}) for number in range(100)), encoding="utf-8")
    for train_split in ("train", "train[:50%]", "train_sft"):
        data = DataSection(source="hub:x", train_length_tokens=8, train_split=train_split, validation_source="y")
        assert len(_validation_documents(data, f"jsonl:{path}")) == 100


def test_a_dataset_without_validation_split_trains_whole_where_another_source_validates(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    rows = "\n".join(json.dumps({"text": f"document {number}"}) for number in range(100))
    (tmp_path / "corpus" / "train.jsonl").write_text(rows, encoding="utf-8")
    settings = {"source": f"hub:{tmp_path / 'corpus'}", "train_length_tokens": 8}
    assert len(training_documents(DataSection(**settings, validation_source="stdlib"))) == 100
    assert len(training_documents(DataSection(**settings, validation_fraction=0.5))) < 100
