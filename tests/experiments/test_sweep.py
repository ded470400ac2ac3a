"""A sweep from its settings to its results: paired trainings, one checkpoint at many betas, and users' mistakes."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, TrainerCallback

from modeling_alibi_gpt.evaluation.perplexity import PerplexityConfig, evaluate_perplexity
from modeling_alibi_gpt.experiments import beta_objectives, runner
from modeling_alibi_gpt.experiments import sweep as beta_sweep
from modeling_alibi_gpt.experiments.sweep import SweepConfig, run_sweep
from modeling_alibi_gpt.report.statistics import choose_trial
from modeling_alibi_gpt.runtime.config import load_config
from modeling_alibi_gpt.runtime.manifest import write_manifest
from modeling_alibi_gpt.runtime.records import check_record, read_records, write_records
from modeling_alibi_gpt.training.deterministic_trainer import DeterministicTrainer
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from tests.bad_input.refusals import script
from tests.support.sweep_cases import tiny_experiment, training_record


ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread_and_a_cache")


def records_of(config: SweepConfig, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_records(Path(config.output_dir) / "trials.jsonl") if record["kind"] == kind]


def test_every_beta_is_trained_with_every_seed(finished: SweepConfig):
    trials = records_of(finished, "beta_trial")
    assert [(trial["beta"], trial["state"], trial["seeds"]) for trial in trials] == [
        (0.5, "COMPLETE", [0, 1]),
        (1.0, "COMPLETE", [0, 1]),
    ]
    for trial in trials:
        for seed, nats in zip(trial["seeds"], trial["nats_per_token_by_seed"], strict=True):
            run = training_record(f"{finished.output_dir}/trials/beta-{trial['beta']}-seed-{seed}")
            assert (run["seed"], run["validation_nats_per_token"]) == (seed, nats)
        assert trial["nats_per_token"] == sum(trial["nats_per_token_by_seed"]) / 2
    assert len({nats for trial in trials for nats in trial["nats_per_token_by_seed"]}) == 4


def test_what_was_learned_stands_beside(finished: SweepConfig):
    trained = records_of(finished, "trained_beta")
    by_run = {(record["alibi_trainable"], record["seed"]): record for record in trained}
    assert sorted(by_run) == [("beta", 0), ("beta", 1), ("slopes", 0), ("slopes", 1)]
    for (kind, seed), record in by_run.items():
        run = training_record(f"{finished.output_dir}/trained/{kind}-seed-{seed}")
        assert record["nats_per_token"] == run["validation_nats_per_token"]
        slopes = torch.tensor(record["slopes_by_layer"])
        start = torch.tensor([[1 / 16, 1 / 256]])
        assert slopes.shape == (2, 2)
        assert not torch.equal(slopes, start.expand(2, 2)), "they learned"
        if kind == "beta":
            torch.testing.assert_close(slopes, torch.tensor(record["beta_by_layer"])[:, None] * start)
        else:
            assert record["beta_by_layer"] is None


def test_records_are_what_reports_read(finished: SweepConfig):
    for record in read_records(f"{finished.output_dir}/trials.jsonl"):
        check_record(record)
        of_sweep = {"beta_trial": "nats_per_token_by_block", "trained_beta": "study"}[record["kind"]]
        assert of_sweep in record
        assert record["provenance"]["data_fingerprint"]


def test_best_config_is_a_whole_experiment_that_repeats_the_best_trial(finished: SweepConfig, tmp_path: Path, capsys):
    train = script("train")
    best, _ = choose_trial(records_of(finished, "beta_trial"))
    path = f"{finished.output_dir}/best.json"
    assert load_config(ExperimentConfig, path).model.overrides["alibi_beta"] == best["beta"]
    assert train.main(["--config", path, "--json"]) == 0
    repeated = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert repeated["model_dir"] == f"{finished.output_dir}/best_run"
    assert repeated["validation_nats_per_token"] == best["nats_per_token_by_seed"][0]

    changed = ["--set", "training.max_steps=2", "--set", f"training.output_dir={tmp_path}/short"]
    assert train.main(["--config", path, *changed, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_steps"] == 2


def assert_names_no_place(folder: str, *places: str) -> None:
    """People publish a best model: nothing in it tells where it was made."""
    known = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    known.add("README.md")
    assert {path.name for path in Path(folder).iterdir()} == known
    written = b"".join(path.read_bytes() for path in Path(folder).iterdir())
    assert not [place for place in (*places, "_name_or_path") if place.encode() in written]


def test_best_model_is_that_of_the_best_trial(finished: SweepConfig):
    best, _ = choose_trial(records_of(finished, "beta_trial"))
    folder = f"{finished.output_dir}/best_model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.config.alibi_beta, model.config.alibi_trainable) == (best["beta"], "none")
    source = finished.experiment["data"]["source"]
    measured = evaluate_perplexity(PerplexityConfig(model=folder, source=source, split="validation"))
    assert measured["nats_per_token"] == best["nats_per_token_by_seed"][0]
    assert_names_no_place(folder, finished.output_dir, source.removeprefix("text:"))


def test_what_is_left_behind_is_of_the_beta_nearest_to_1_among_those_that_are_not_told_apart(
    finished: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The losses are made up: beta 8 is lowest, by less than the two seeds of beta 2 lie apart."""
    nats = {1.0: (5.8, 5.8), 2.0: (5.65, 5.57), 8.0: (5.6, 5.6)}

    def train(experiment: ExperimentConfig, **kwargs: Any) -> dict[str, Any]:
        loss = nats[experiment.model.overrides["alibi_beta"]][experiment.training["seed"]]
        folder = Path(experiment.training["output_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        record = training_record(f"{finished.output_dir}/trials/beta-1.0-seed-0") | {"validation_nats_per_token": loss}
        write_records(folder / "training.jsonl", [record])
        (folder / "config.json").write_text(json.dumps({"alibi_beta": experiment.model.overrides["alibi_beta"]}))
        write_manifest(folder, [folder / "config.json"])
        return record

    monkeypatch.setattr(runner, "train", train)
    result = run_sweep(dataclasses.replace(finished, output_dir=str(tmp_path / "level"), betas=[1, 2, 8], trained=[]))
    assert (result["best_beta"], result["lowest_beta"], result["level_betas"]) == (2.0, 8.0, [2.0, 8.0])
    assert result["nats_per_token"] == pytest.approx(5.61)
    assert load_config(ExperimentConfig, result["best_config"]).model.overrides["alibi_beta"] == 2.0
    assert json.loads(Path(result["best_model"], "config.json").read_text()) == {"alibi_beta": 2.0}
    assert "at \u03b2 8. Not told apart" in result["choice"] and "Of these, 2 is chosen" in result["choice"]


def test_a_training_that_diverges_is_pruned_if_another_has_finished(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compute_loss = DeterministicTrainer.compute_loss

    def diverge(self: DeterministicTrainer, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(self, model, *args, **kwargs)
        return loss * torch.nan if model.training and model.config.alibi_beta == 2 else loss

    monkeypatch.setattr(DeterministicTrainer, "compute_loss", diverge)
    experiment = tiny_experiment(root, eval_strategy="steps", eval_steps=6)
    config = SweepConfig(
        output_dir=str(tmp_path / "out"), experiment=experiment, betas=[1, 2, 4], pruning=True, trained=[]
    )
    run_sweep(config)
    states = {trial["beta"]: trial["state"] for trial in records_of(config, "beta_trial")}
    assert states == {1.0: "COMPLETE", 2.0: "PRUNED", 4.0: "COMPLETE"}
    with pytest.raises(ValueError, match="the loss is nan at step 2"):
        run_sweep(dataclasses.replace(config, output_dir=str(tmp_path / "first"), betas=[2, 1]))
    with pytest.raises(ValueError, match="the loss is nan at step 2"):
        run_sweep(dataclasses.replace(config, output_dir=str(tmp_path / "unpruned"), pruning=False))


def test_a_finished_sweep_only_writes_its_results_again(copied: SweepConfig, trainings: list[str]):
    before = read_records(f"{copied.output_dir}/trials.jsonl")
    for name in ("trials.jsonl", "best.json"):
        Path(copied.output_dir, name).unlink()
    Path(copied.output_dir, ".best_model.partial").mkdir()  # what a kill leaves
    Path(copied.output_dir, "best_model", "config.json").write_text("torn")
    run_sweep(copied)
    assert trainings == []
    assert read_records(f"{copied.output_dir}/trials.jsonl") == before
    assert AutoModelForCausalLM.from_pretrained(f"{copied.output_dir}/best_model").config.alibi_beta in (0.5, 1)
    assert not Path(copied.output_dir, ".best_model.partial").exists()


def test_a_sweep_can_grow_and_turn_to_sampling(copied: SweepConfig, trainings: list[str]):
    run_sweep(dataclasses.replace(copied, betas=[0.5, 1, 2]))
    assert trainings == ["beta-2.0-seed-0", "beta-2.0-seed-1"]
    result = run_sweep(dataclasses.replace(copied, betas=None, num_trials=4))
    assert len(trainings) == 4
    assert (result["num_trials"], result["num_records"]) == (4, 8)


def test_the_model_of_another_machines_trial_is_left_there(copied: SweepConfig):
    for trained_here in Path(copied.output_dir, "trials").glob("beta-*"):
        (trained_here / "training.jsonl").unlink()  # what a worker that was killed here leaves
    result = run_sweep(copied)
    assert result["best_model"] is None
    assert not Path(copied.output_dir, "best_model").exists(), "not that of another trial either"
    assert Path(result["best_config"]).exists()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_model_of_the_best_trial_is_refused_and_leaves_the_old_one(copied: SweepConfig, name: str):
    best, _ = choose_trial(records_of(copied, "beta_trial"))
    trial = Path(copied.output_dir, "trials", f"beta-{best['beta']}-seed-0")
    (trial / name).unlink()
    with pytest.raises(
        ValueError,
        match=f"{trial} is the best trial, but its model is damaged .{name} is missing.*with 'alibi-gpt train",
    ):
        run_sweep(copied)
    assert AutoModelForCausalLM.from_pretrained(f"{copied.output_dir}/best_model").config.alibi_beta == best["beta"]


class Interrupt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("values", [{"betas": [1.0]}, {"num_trials": 1}], ids=["grid", "sampled"])
def test_an_interrupted_trial_goes_on_from_its_checkpoint(
    root: Path, finished: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
):
    config = SweepConfig(
        output_dir=str(tmp_path / "interrupted"),
        experiment=tiny_experiment(root),
        trained=[],
        **values,
    )
    train = runner.train
    monkeypatch.setattr(runner, "train", lambda experiment, **kwargs: train(experiment, callbacks=[Interrupt()]))
    with pytest.raises(KeyboardInterrupt):
        run_sweep(config)
    monkeypatch.setattr(runner, "train", train)
    result = run_sweep(config)
    [folder] = Path(config.output_dir, "trials").glob("beta-*")
    assert training_record(folder)["resumed_from"] == "checkpoint-4"
    assert not list(folder.glob("checkpoint-*")), "checkpoints of finished trials are of no use"
    if "betas" in values:
        whole = records_of(finished, "beta_trial")[1]
        assert result["nats_per_token"] == whole["nats_per_token_by_seed"][0]


def test_trainings_on_different_texts_are_not_one_trial(
    tmp_path: Path, trainings: list[str], monkeypatch: pytest.MonkeyPatch
):
    """The study of a sweep that ends after its first training has no trial yet, so it belongs to no text."""
    experiment = tiny_experiment(tmp_path)
    config = SweepConfig(
        output_dir=str(tmp_path / "out"), experiment=experiment, betas=[1.0], seeds=[0, 1], trained=[]
    )
    train = beta_sweep.train_and_clean
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(beta_sweep, "train_and_clean", lambda *args: (train(*args), _interrupt()))
        run_sweep(config)
    text = tmp_path / "words.txt"
    text.write_text(text.read_text(encoding="utf-8") + " score", encoding="utf-8")
    message = r"beta-1.0-seed-0 was trained on another text: got fingerprint \S+, expected \S+; restore the text"
    with pytest.raises(ValueError, match=message):
        run_sweep(config)
    assert trainings == ["beta-1.0-seed-0"]


def test_trainings_with_different_tokenizers_are_not_one_study(tmp_path: Path, trainings: list[str]):
    experiment = tiny_experiment(tmp_path)
    settings = {"betas": [1.0], "seeds": [0], "trained": [], "output_dir": str(tmp_path / "out")}
    run_sweep(SweepConfig(experiment=experiment, **settings | {"output_dir": str(tmp_path / "own")}))
    [folder] = (tmp_path / "tokenizers").glob("bpe-*")
    mine = shutil.copytree(folder, tmp_path / "mine")
    experiment["data"]["tokenizer"] = str(mine)
    config = SweepConfig(experiment=experiment, **settings)
    run_sweep(config)
    run_sweep(config)
    assert trainings == ["beta-1.0-seed-0"] * 2
    backend = json.loads((mine / "tokenizer.json").read_text())
    backend["model"]["merges"] = backend["model"]["merges"][:-2]
    (mine / "tokenizer.json").write_text(json.dumps(backend))
    with pytest.raises(ValueError, match="belongs to another objective, with different values of tokens; choose"):
        run_sweep(config)
    config = SweepConfig(experiment=experiment, **settings, study_name="new")
    with pytest.raises(ValueError, match=r"beta-1.0-seed-0 was trained with another tokenizer: got fingerprint"):
        run_sweep(config)


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_trainings_that_fall_behind_are_pruned(
    root: Path, tmp_path: Path, trainings: list[str], recwarn: pytest.WarningsRecorder
):
    experiment = tiny_experiment(root, eval_strategy="steps", eval_steps=4, learning_rate=0.05, max_steps=4)
    # Steeper than any slope of use: a head sees no other token than its own.
    betas = [0.5, 1, 2, 1e4]
    config = SweepConfig(
        output_dir=str(tmp_path / "pruned"),
        experiment=experiment,
        betas=betas,
        seeds=[0, 1],
        pruning=True,
        trained=[],
    )
    run_sweep(config)
    result = run_sweep(config)
    trials = records_of(config, "beta_trial")
    assert [trial["state"] for trial in trials] == ["COMPLETE", "COMPLETE", "COMPLETE", "PRUNED"]
    pruned = trials[-1]
    check_record(pruned)
    assert (pruned["nats_per_token"], pruned["perplexity"], pruned["nats_per_token_by_seed"]) == (None, None, [])
    assert pruned["provenance"]["data_fingerprint"]
    assert trainings.count("beta-10000.0-seed-0") == 1
    assert "beta-10000.0-seed-1" not in trainings
    assert not list(Path(config.output_dir).glob("trials/*/checkpoint-*"))
    assert result["num_trials"] == 3
    assert not [warning for warning in recwarn if "already reported" in str(warning.message)], "of one seed only"
    study = optuna.load_study(study_name="beta", storage=config.storage_url)
    assert [sorted(trial.intermediate_values) for trial in study.get_trials()] == [[4]] * 4


def test_posthoc_is_the_perplexity_of_a_model_with_that_beta(posthoc: SweepConfig, tmp_path: Path):
    result = run_sweep(posthoc)
    for trial in records_of(posthoc, "beta_trial"):
        check_record(trial)
        assert (trial["mode"], trial["seeds"]) == ("posthoc", [])
        folder = tmp_path / f"beta-{trial['beta']}"
        shutil.copytree(posthoc.checkpoint, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"alibi_beta": trial["beta"]}))
        measured = evaluate_perplexity(PerplexityConfig(model=str(folder), source=posthoc.source))
        assert (trial["nats_per_token"], trial["perplexity"]) == (measured["nats_per_token"], measured["perplexity"])
    unchanged = evaluate_perplexity(PerplexityConfig(model=posthoc.checkpoint, source=posthoc.source))
    assert unchanged["nats_per_token"] == records_of(posthoc, "beta_trial")[1]["nats_per_token"]
    assert len({trial["nats_per_token"] for trial in records_of(posthoc, "beta_trial")}) == 3

    assert_names_no_place(result["best_model"], posthoc.output_dir, posthoc.checkpoint)
    best = evaluate_perplexity(PerplexityConfig(model=result["best_model"], source=posthoc.source))
    assert best["perplexity"] == result["perplexity"]
    model = AutoModelForCausalLM.from_pretrained(result["best_model"])
    assert model.config.alibi_beta == result["best_beta"]


def test_best_config_of_posthoc_fine_tunes_with_the_best_beta(posthoc: SweepConfig, capsys):
    result = run_sweep(posthoc)
    train = script("train")
    settings = ["training.max_steps=2", "training.report_to=none", "data.cache_dir=/nowhere"]
    command = ["--config", result["best_config"], *(part for s in settings for part in ("--set", s)), "--json"]
    assert train.main(command) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    tuned = AutoModelForCausalLM.from_pretrained(record["model_dir"])
    assert (record["num_steps"], tuned.config.alibi_beta) == (2, result["best_beta"])
    assert len(tuned.get_input_embeddings().weight) == 264


def test_posthoc_of_a_trained_run_fine_tunes_by_its_settings(
    finished: SweepConfig, posthoc: SweepConfig, tmp_path: Path
):
    checkpoint, source = tmp_path / "run", finished.experiment["data"]["source"]
    shutil.copytree(f"{finished.output_dir}/trials/beta-1.0-seed-0", checkpoint)
    experiment = json.loads((checkpoint / "experiment.json").read_text())
    experiment["data"]["tokenizer"] = "train"
    (checkpoint / "experiment.json").write_text(json.dumps(experiment))
    result = run_sweep(dataclasses.replace(posthoc, checkpoint=str(checkpoint), source=source))
    best = load_config(ExperimentConfig, result["best_config"])
    assert best.model.checkpoint == str(checkpoint)
    assert best.data.tokenizer is None, "that of the checkpoint"
    assert (best.data.source, best.data.train_length_tokens) == (source, 16)
    changed = {"output_dir": f"{posthoc.output_dir}/best_run", "seed": 0}
    assert best.training == finished.experiment["training"] | changed


def test_script_prints_the_trials_and_ends_with_the_result(finished: SweepConfig, tmp_path: Path, capsys):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(dataclasses.asdict(finished)), encoding="utf-8")
    assert script("sweep_beta").main(["--config", str(path), "--json"]) == 0
    captured = capsys.readouterr()
    assert "optuna" not in captured.err.lower()
    *_, best, last = captured.out.splitlines()
    result = json.loads(last)
    assert best == result["choice"] and f"{result['best_beta']:g} is chosen" in best
    assert sum("complete" in line for line in captured.out.splitlines()) == 2
    assert result == run_sweep(finished)


def test_an_objective_is_its_text_wherever_it_lies(copied: SweepConfig, tmp_path: Path, trainings: list[str]):
    moved = tiny_experiment(tmp_path)
    run_sweep(dataclasses.replace(copied, experiment=moved))
    assert trainings == [], "the same text at another place, as on another machine"
    with (tmp_path / "words.txt").open("a", encoding="utf-8") as file:
        file.write(" another")
    with pytest.raises(ValueError, match="belongs to another objective"):
        run_sweep(dataclasses.replace(copied, experiment=moved))


def test_a_model_is_its_file_when_the_sweep_begins(finished: SweepConfig, copied: SweepConfig, tmp_path: Path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps(finished.experiment["model"]["config"]), encoding="utf-8")
    config = dataclasses.replace(copied, experiment=finished.experiment | {"model": {"config": str(path)}})
    run_sweep(config)
    best = json.loads(Path(config.output_dir, "best.json").read_text())
    assert best["model"]["config"] == finished.experiment["model"]["config"], "complete without that file"
    path.write_text(json.dumps(finished.experiment["model"]["config"] | {"hidden_size": 8}), encoding="utf-8")
    with pytest.raises(ValueError, match="belongs to another objective"):
        run_sweep(config)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweep").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_sweeps_can_begin(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    data = SimpleNamespace(text={"documents": "text"})
    monkeypatch.setattr(beta_objectives, "prepare_data", lambda experiment: data)
    config = load_config(SweepConfig, str(path))
    if config.mode == "retrain":
        objective = beta_objectives.RetrainObjective(config)
        assert objective.experiment.model.config["hidden_size"] == 192
        assert objective.experiment.training["output_dir"] != config.output_dir


def test_a_beta_or_a_trained_one_of_the_experiment_itself_counts_for_nothing(copied: SweepConfig):
    plain = beta_objectives.RetrainObjective(copied)
    model = copied.experiment["model"] | {"overrides": {"alibi_beta": 3.0, "alibi_trainable": "slopes"}}
    other = beta_objectives.RetrainObjective(
        dataclasses.replace(copied, experiment=copied.experiment | {"model": model})
    )
    assert other.settings == plain.settings
    assert other.best_experiment(2.0) == plain.best_experiment(2.0)
    assert other.best_experiment(2.0)["model"]["overrides"] == {"alibi_beta": 2.0, "alibi_trainable": "none"}


def test_fine_tuning_is_swept_from_one_checkpoint(finished: SweepConfig, tmp_path: Path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(f"{finished.output_dir}/best_model", checkpoint)
    experiment = finished.experiment | {"model": {"checkpoint": str(checkpoint)}}
    config = SweepConfig(output_dir=str(tmp_path / "tuned"), experiment=experiment, betas=[1, 2], trained=[])
    result = run_sweep(config)
    assert_names_no_place(result["best_model"], str(tmp_path), finished.output_dir)
    tuned = AutoModelForCausalLM.from_pretrained(result["best_model"]).config
    assert (tuned.alibi_beta, tuned.alibi_trainable) == (result["best_beta"], "none")
    shutil.copy(f"{finished.output_dir}/trials/beta-0.5-seed-1/model.safetensors", checkpoint)
    with pytest.raises(ValueError, match="belongs to another objective"):
        run_sweep(config)
    learned = {"checkpoint": f"{finished.output_dir}/trained/beta-seed-0"}
    with pytest.raises(ValueError, match="alibi_beta has no effect"):
        run_sweep(dataclasses.replace(config, experiment=experiment | {"model": learned}))


def test_a_tilde_in_a_file_is_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    experiment = tiny_experiment(tmp_path, output_dir="~/run", max_steps=2)
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"experiment": experiment, "betas": [1.0], "trained": [], "output_dir": "~/sweep"}))
    result = run_sweep(load_config(SweepConfig, str(path)))
    assert result["best_model"] == str(tmp_path / "home" / "sweep" / "best_model")
    assert PerplexityConfig(model="~/sweep/best_model", source="stdlib").model == result["best_model"]
    best = load_config(ExperimentConfig, result["best_config"], ["training.output_dir=~/run"])
    assert best.training["output_dir"] == str(tmp_path / "home" / "run")
    assert not (tmp_path / "~").exists()
