"""What is changed or damaged behind a run's back is named: nothing is mixed, believed or passed over in silence."""

import json
import logging
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from modeling_alibi_gpt.runtime.config import load_config
from modeling_alibi_gpt.runtime.manifest import MANIFEST_FILE, manifest_difference, write_manifest
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.run_folder import check_model
from modeling_alibi_gpt.training.trainer import train
from tests.support.train_commands import exit_code, load_script, start_training


class Killed:
    """The tiny experiment on a text, a tokenizer and caches of its own, killed after its second checkpoint."""

    def __init__(self, experiment_file: Path, corpus: Path) -> None:
        self.file, self.folder = experiment_file, experiment_file.parent
        self.run = self.folder / "run"
        self.text, self.cache = self.folder / "text", self.folder / "tokenizers"
        self.text.mkdir()
        for path in corpus.glob("*.txt"):
            shutil.copy(path, self.text)
        self.settings = [f"data.source=text:{self.text}/*.txt", f"data.cache_dir={self.cache}"]
        self.kill()

    def kill(self) -> None:
        killed = start_training(self.file, *self.settings, killed_at="os.mkdir checkpoint-10")
        assert exit_code(killed) == -signal.SIGKILL

    def config(self, *settings: str) -> ExperimentConfig:
        return load_config(ExperimentConfig, str(self.file), [*self.settings, *settings])

    def command(self) -> int:
        arguments = ["--config", str(self.file)]
        for setting in self.settings:
            arguments += ["--set", setting]
        return load_script().main([*arguments, "--json"])


@pytest.fixture
def killed(experiment_file: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Killed]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))
    yield Killed(experiment_file, corpus)


def refusal(capsys: pytest.CaptureFixture[str], run: Killed) -> str:
    """The one line of a command that is refused and changes nothing in the run's folder."""
    before = tree(run.run)
    capsys.readouterr()
    assert run.command() == 2
    captured = capsys.readouterr()
    [error] = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert captured.out == "" and captured.err.endswith(f"{error}\n")
    assert tree(run.run) == before
    return error


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and record.name.startswith("modeling_alibi_gpt")
    ]


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "one other bit": flip_last_bit,
}


# The text


@pytest.mark.parametrize("place", ["training", "validation"])
def test_text_that_changed_between_kill_and_resume_is_refused(
    killed: Killed, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    path = killed.text / "0.txt"
    whole = path.read_text()
    path.write_text(f"changed {whole}" if place == "training" else f"{whole} changed")
    error = refusal(capsys, killed)
    begun = json.loads((killed.run / "data.json").read_text())["documents"]
    assert f"{killed.run} contains a run on other documents: got fingerprint " in error
    assert f", expected {begun}; restore the text and the tokenizer that it started with" in error
    path.write_text(whole)
    assert killed.command() == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["resumed_from"] == "checkpoint-8"


def test_a_tokenizer_that_changed_between_kill_and_resume_is_refused(
    killed: Killed, capsys: pytest.CaptureFixture[str]
) -> None:
    [trained] = killed.cache.glob("bpe-*")
    mine = killed.folder / "mine"
    shutil.copytree(trained, mine)
    killed.settings.append(f"data.tokenizer={mine}")
    shutil.rmtree(killed.run)
    killed.kill()
    backend = json.loads((mine / "tokenizer.json").read_text())
    backend["model"]["merges"] = backend["model"]["merges"][:-2]
    (mine / "tokenizer.json").write_text(json.dumps(backend))
    assert "contains a run on other tokens: got fingerprint " in refusal(capsys, killed)


def test_checkpoints_of_an_unknown_text_are_refused(killed: Killed, capsys: pytest.CaptureFixture[str]) -> None:
    (killed.run / "data.json").unlink()
    assert "contains checkpoints but no data.json, which says what they were trained on" in refusal(capsys, killed)


def test_milestones_measured_on_another_text_are_not_kept(killed: Killed) -> None:
    shutil.rmtree(killed.run)
    killed.settings += ["milestones.steps=[0]", "milestones.lengths_tokens=[32]"]
    process = start_training(killed.file, *killed.settings, killed_at="os.mkdir checkpoint-4")
    assert exit_code(process) == -signal.SIGKILL
    (killed.text / "0.txt").write_text("plan window " * 200)
    record = train(killed.config())
    measured = [json.loads(line) for line in (killed.run / "milestones.jsonl").read_text().splitlines()]
    of_text = {record["provenance"]["data_fingerprint"]}
    assert {milestone["provenance"]["data_fingerprint"] for milestone in measured} == of_text


# The model


def test_a_model_config_that_changed_is_refused(killed: Killed, capsys: pytest.CaptureFixture[str]) -> None:
    file, fields = killed.folder / "model.json", killed.config().model.config
    file.write_text(json.dumps(fields))
    killed.settings.append(f"model.config={file}")
    shutil.rmtree(killed.run)
    killed.kill()
    file.write_text(json.dumps(fields | {"alibi_beta": 64.0}))
    message = f"error: {killed.run} contains a run of another model: got alibi_beta 64.0, expected 1.0; restore the "
    assert refusal(capsys, killed).startswith(message)
    file.write_text(json.dumps(fields | {"alibi_beta": 1}, indent=4, sort_keys=True))
    assert killed.command() == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["resumed_from"] == "checkpoint-8"
    assert killed.command() == 0
    file.write_text(json.dumps(fields | {"position_method": "rope"}))
    assert "of another model: got position_method 'rope', expected 'alibi'; " in refusal(capsys, killed)


def test_a_base_checkpoint_that_changed_is_refused(make_experiment: Callable[..., ExperimentConfig]) -> None:
    config = make_experiment("training.max_steps=1")
    base = Path(train(config)["model_dir"])
    settings = ["training.max_steps=1", "model.config=null", f"model.checkpoint={base}"]
    config = make_experiment(*settings, f"training.output_dir={base.parent / 'tuned'}")
    record = train(config)
    fields = (base / "config.json").read_text()
    (base / "config.json").write_text(json.dumps(json.loads(fields) | {"alibi_beta": 64.0}))
    with pytest.raises(ValueError, match=r"/tuned contains a run of another model: got alibi_beta 64\.0, expected 1"):
        train(config)
    (base / "config.json").write_text(json.dumps(json.loads(fields) | {"transformers_version": "9.0.0"}))
    assert train(config) == record
    flip_last_bit(base / "model.safetensors")
    with pytest.raises(ValueError, match="/tuned contains a run of another model: got weights '"):
        train(config)


def test_a_run_of_an_earlier_version_says_nothing_of_its_model(tmp_path: Path) -> None:
    check_model(tmp_path, {"alibi_beta": 2.0})
    (tmp_path / "data.json").write_text('{"documents": "0", "tokens": "0"}')
    check_model(tmp_path, {"alibi_beta": 2.0})
    (tmp_path / "data.json").write_text('{"model": {"alibi_beta": 2, "old": 1}}')
    check_model(tmp_path, {"alibi_beta": 2.0, "field_of_a_later_version": 3})


# The best model


def test_a_damaged_best_checkpoint_takes_the_run_back_to_before_it(
    killed: Killed, caplog: pytest.LogCaptureFixture
) -> None:
    best = ["load_best_model_at_end=true", "metric_for_best_model=nats_per_token", "learning_rate=3.0"]
    best += ["eval_strategy=steps", "eval_steps=2", "save_steps=2", "save_total_limit=5"]
    killed.settings += [f"training.{setting}" for setting in best]
    shutil.rmtree(killed.run)
    killed.kill()
    state = json.loads((killed.run / "checkpoint-8" / "trainer_state.json").read_text())
    name = Path(state["best_model_checkpoint"]).name
    assert name != "checkpoint-8", "this learning rate must diverge, or the test shows nothing"
    (killed.run / name / "model.safetensors").unlink()
    weights = train(killed.config()), (killed.run / "model.safetensors").read_bytes()
    words = f": in {name}, which holds the best model so far, model.safetensors is missing. "
    assert any(words in warning for warning in warnings(caplog))
    straight = train(killed.config(f"training.output_dir={killed.folder / 'straight'}"))
    assert weights[0]["loss_history"] == straight["loss_history"]
    assert weights[1] == (killed.folder / "straight" / "model.safetensors").read_bytes()


# Caches


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tokenizer_in_the_cache_is_named_and_trained_again(
    killed: Killed, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    [folder] = killed.cache.glob("bpe-*")
    before = tree(folder)
    DAMAGES[damage](folder / "tokenizer.json")
    assert train(killed.config())["resumed_from"] == "checkpoint-8"
    [warning] = warnings(caplog)
    assert warning.startswith(f"retraining the damaged cached tokenizer {folder}: tokenizer.json ")
    assert tree(folder) == before
    assert list(killed.cache.iterdir()) == [folder]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_of_text_is_named_and_made_again(
    killed: Killed, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    arrows = sorted(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow"))
    assert len(arrows) == 4, "documents and blocks of both splits"
    before = [path.read_bytes() for path in arrows]
    for path in arrows:
        DAMAGES[damage](path)
    assert train(killed.config())["resumed_from"] == "checkpoint-8"
    found = warnings(caplog)
    assert len(found) == 4
    assert all(w.startswith("regenerating the damaged cached text ") and ".arrow " in w for w in found)
    assert [path.read_bytes() for path in arrows] == before


# A finished run


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "unlisted"])
def test_a_finished_run_without_its_model_is_refused(
    experiment_file: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    run = Finished(experiment_file)
    path = run.run / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if damage == "unlisted":
        (run.run / MANIFEST_FILE).unlink()
    error = refusal(capsys, run)
    assert error.startswith(f"error: {run.run} contains a finished run that is damaged (")
    assert error.endswith(
        f"): restore the file, or delete {run.run}/training.jsonl and run the same command again, "
        "which resumes from the last checkpoint or starts over if there is none"
    )
    if damage == "missing":
        assert f"({name} is missing)" in error

    (run.run / "training.jsonl").unlink()
    assert run.command() == 0
    assert run.command() == 0


@pytest.mark.parametrize(
    "text", ["", "{}", "{}\n", '{"kind": "perplexity"}\n', "[1]\n", "{\n", '{"kind": "training"}\n']
)
def test_a_damaged_record_is_one_line(experiment_file: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    run = Finished(experiment_file)
    (run.run / "training.jsonl").write_text(text)
    assert "contains a finished run that is damaged (" in refusal(capsys, run)


class Finished(Killed):
    """The tiny experiment, shortened and finished."""

    def __init__(self, experiment_file: Path) -> None:
        self.file, self.run = experiment_file, experiment_file.parent / "run"
        self.settings = ["training.max_steps=2"]
        assert exit_code(start_training(self.file, *self.settings)) == 0


# The manifest


def test_a_manifest_names_the_first_difference(tmp_path: Path) -> None:
    assert manifest_difference(tmp_path) == "manifest.json is missing"
    (tmp_path / "inner").mkdir()
    (tmp_path / "a").write_text("aa")
    (tmp_path / "inner" / "b").write_text("bb")
    write_manifest(tmp_path)
    (tmp_path / "beside").touch()
    assert manifest_difference(tmp_path) is None
    (tmp_path / "a").write_text("xx")
    assert manifest_difference(tmp_path) == "a has changed since it was written"
    (tmp_path / "inner" / "b").write_text("b")
    assert manifest_difference(tmp_path) == "inner/b has 1 bytes, expected 2"
    (tmp_path / "a").unlink()
    assert manifest_difference(tmp_path) == "a is missing"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"files": {}}', '{"files": {"a": 1}}', '{"files": {"../a": {"size_bytes": 1, "sha256": ""}}}'],
)
def test_a_manifest_that_is_none_matches_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST_FILE).write_text(content)
    assert manifest_difference(tmp_path).startswith("manifest.json is damaged: ")
