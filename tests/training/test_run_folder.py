"""Whose folder it is, what is left in it by a full disk, and what a rerun makes of that."""

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.runtime import atomic
from modeling_alibi_gpt.runtime.atomic import full_disk_as_os_error
from modeling_alibi_gpt.runtime.config import build_config, load_config
from modeling_alibi_gpt.runtime.manifest import manifest_difference, write_manifest
from modeling_alibi_gpt.runtime.records import read_records
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.resumable import (
    drop_damaged_checkpoints,
    remove_torn_checkpoints,
    trainer_state,
)
from modeling_alibi_gpt.training.run_folder import (
    BATCH,
    check_output_dir,
    claimed_output_dir,
    save_model_folder,
    whole_checkpoints_on_a_full_disk,
)
from modeling_alibi_gpt.training.trainer import train
from tests.support.full_disk import SmallDisk
from tests.support.train_commands import load_script


@dataclasses.dataclass(frozen=True)
class Settings:
    name: str
    training: dict[str, Any]


ONE = Settings("one", {"seed": 0, "max_steps": 3})
OTHER = Settings("one", {"seed": 1, "learning_rate": 0.1})
TEXT = {"documents": "0123+4567", "tokens": "89ab+cdef"}


def claim(folder: Path, settings: Settings | ExperimentConfig, text: dict[str, str] = TEXT) -> None:
    with claimed_output_dir(folder, settings, text):
        pass


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("result", ["training.jsonl", "checkpoint-3"])
def test_results_of_another_experiment_are_never_gone_on_with(tmp_path: Path, result: str) -> None:
    claim(tmp_path, ONE)
    (tmp_path / result).mkdir()
    check_output_dir(tmp_path, ONE)
    differing = "with different values of training.learning_rate, training.max_steps, training.seed; choose another"
    with pytest.raises(ValueError, match=differing):
        check_output_dir(tmp_path, OTHER)


def test_an_experiment_without_results_gives_way(tmp_path: Path) -> None:
    claim(tmp_path, ONE)
    for name in ("precision.json", "milestones.jsonl"):
        (tmp_path / name).write_text("{}")
    claim(tmp_path, ONE)
    assert names(tmp_path) == {".lock", "data.json", "experiment.json", "milestones.jsonl", "precision.json"}
    claim(tmp_path, OTHER)
    assert names(tmp_path) == {".lock", "data.json", "experiment.json"}, "what was measured is of the one"
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match="contains another run"):
        check_output_dir(tmp_path, ONE)


def test_a_setting_that_a_later_version_adds_costs_a_run_nothing(tmp_path: Path) -> None:
    """A key that is new, and null, makes no other experiment."""
    claim(tmp_path, ONE)
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("{}")
    write_manifest(tmp_path / "checkpoint-3")
    for name in ("precision.json", "milestones.jsonl"):
        (tmp_path / name).write_text("{}")
    before = names(tmp_path)
    grown = dataclasses.make_dataclass("Grown", [("name", str), ("training", dict), ("later", None, None)])
    claim(tmp_path, grown("one", ONE.training))
    assert names(tmp_path) == before
    assert json.loads((tmp_path / "experiment.json").read_text())["later"] is None


def test_a_run_begun_before_a_setting_existed_has_its_default(tmp_path: Path) -> None:
    values = {
        "name": "old",
        "model": {"config": {}},
        "data": {"train_length_tokens": 8},
        "training": {"output_dir": str(tmp_path)},
    }
    config = build_config(ExperimentConfig, values)
    claim(tmp_path, config)
    (tmp_path / "checkpoint-3").mkdir()
    path = tmp_path / "experiment.json"
    old = json.loads(path.read_text())
    del old["position_learning_rate"], old["data"]["isolate_documents"], old["model"]["overrides"]
    path.write_text(json.dumps(old))
    check_output_dir(tmp_path, config)
    with pytest.raises(ValueError, match="different values of position_learning_rate;"):
        check_output_dir(tmp_path, dataclasses.replace(config, position_learning_rate=30.0))


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for refuse in (check_output_dir, claim):
        with pytest.raises(ValueError, match="is not empty and is not a run folder"):
            refuse(tmp_path, ONE)
    assert "experiment.json" not in names(tmp_path)


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", ".experiment.json.123.tmp"]])
def test_what_a_kill_at_the_very_start_leaves_is_no_foreign_folder(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).write_text("{")
    check_output_dir(tmp_path, ONE)
    claim(tmp_path, ONE)
    assert names(tmp_path) == {".lock", "data.json", "experiment.json"}


def test_leftovers_go_and_whole_checkpoints_stay(tmp_path: Path) -> None:
    claim(tmp_path, ONE)
    (tmp_path / ".saving").mkdir()
    (tmp_path / ".training.jsonl.99.tmp").touch()
    for name, state in (("checkpoint-2", "{}"), ("checkpoint-10", "{}"), ("checkpoint-12", None)):
        (tmp_path / name).mkdir()
        if state is not None:
            (tmp_path / name / "trainer_state.json").write_text(state)
    write_manifest(tmp_path / "checkpoint-2")
    claim(tmp_path, ONE)
    assert names(tmp_path) == {".lock", "data.json", "experiment.json", "checkpoint-2"}


def sharded_checkpoint(folder: Path, weight_map: Any) -> None:
    """A checkpoint as Trainer leaves it, whose index says that its one shard is this or that."""
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    save_file({"weight": torch.ones(1)}, folder / "model-00001-of-00001.safetensors")


def test_a_checkpoint_without_a_manifest_is_torn(tmp_path: Path) -> None:
    for step in (3, 6):
        sharded_checkpoint(tmp_path / f"checkpoint-{step}", {"weight": "model-00001-of-00001.safetensors"})
    write_manifest(tmp_path / "checkpoint-3")
    remove_torn_checkpoints(tmp_path)
    assert names(tmp_path) == {"checkpoint-3"}


@pytest.mark.parametrize(
    "weight_map", [[], "x", {"weight": 1}, {"weight": "../../secret"}, {"weight": "/etc/passwd"}, {"weight": ".."}]
)
def test_a_checkpoint_whose_index_no_run_wrote_is_neither_gone_on_with_nor_dropped(
    tmp_path: Path, weight_map: Any
) -> None:
    claim(tmp_path, ONE)
    sharded_checkpoint(tmp_path / "checkpoint-3", weight_map)
    with pytest.raises(ValueError, match="model.safetensors.index.json"):
        check_output_dir(tmp_path, ONE)
    with pytest.raises(ValueError, match="model.safetensors.index.json"):
        claim(tmp_path, ONE)
    assert "checkpoint-3" in names(tmp_path)


def test_a_folder_is_claimed_by_one_process_at_a_time(tmp_path: Path) -> None:
    with claimed_output_dir(tmp_path, ONE, TEXT), pytest.raises(ValueError, match="another process is training in"):
        claim(tmp_path, ONE)
    claim(tmp_path, ONE)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_one_name(tmp_path: Path, number: int) -> None:
    (tmp_path / "checkpoint-4").mkdir()
    with pytest.raises(OSError) as caught, whole_checkpoints_on_a_full_disk(tmp_path):
        raise OSError(number, os.strerror(number))
    assert caught.value.errno == errno.ENOSPC
    assert not names(tmp_path), "a torn checkpoint takes room that nobody has"


@pytest.mark.parametrize("error", [SafetensorError("I/O error"), RuntimeError("unexpected pos 8320 vs 8212")])
def test_words_of_libraries_are_checked_with_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with pytest.raises(type(error)), full_disk_as_os_error(tmp_path):
        raise error

    def refuse(**kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError) as caught, full_disk_as_os_error(tmp_path):
        raise error
    assert (caught.value.errno, caught.value.__cause__) == (errno.ENOSPC, error)


def test_saving_replaces_a_model_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tokenizer:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("new")

    torch.manual_seed(0)
    model = AlibiGPTForCausalLM(
        AlibiGPTConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    save_model_folder(model, Tokenizer(), tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(files) == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}

    with torch.no_grad():
        model.lm_head.weight.zero_()
    monkeypatch.setattr(Tokenizer, "save_pretrained", lambda self, folder: os.listdir(folder / "missing"))
    with pytest.raises(FileNotFoundError):
        save_model_folder(model, Tokenizer(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_templates_in_a_folder_of_the_tokenizer_are_part_of_the_model(tmp_path: Path) -> None:
    class Tokenizer:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "templates").mkdir()
            (folder / "templates" / "tool_use.jinja").write_text("{{ tools }}")

    model = AlibiGPTForCausalLM(
        AlibiGPTConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    for _ in range(2):  # a second training replaces the model of the first
        files = save_model_folder(model, Tokenizer(), tmp_path)
        assert files[-1].name == "config.json" and tmp_path / "templates" / "tool_use.jinja" in files
        write_manifest(tmp_path, files)
        assert manifest_difference(tmp_path) is None


# A disk that is really full


@pytest.mark.parametrize(
    ("free_kib", "settings", "whole"),
    [
        (0, [], None),
        (16, [], None),  # within the weights of the first checkpoint
        (90, [], None),  # within the state of its optimizer
        (270, [], "checkpoint-4"),
        (450, [], "checkpoint-8"),
        (30, ["training.save_strategy=no"], None),  # within the final model
    ],
)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on_after_it(
    small_disk: SmallDisk,
    experiment_file: Path,
    capsys: pytest.CaptureFixture[str],
    free_kib: int,
    settings: list[str],
    whole: str | None,
) -> None:
    run = small_disk.folder / "run"
    command = ["--config", str(experiment_file), "--set", f"training.output_dir={run}"]
    for setting in settings:
        command += ["--set", setting]
    small_disk.leave_free(free_kib * 1024)
    assert load_script().main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: the disk is full: free some space and run the same command again")
    assert not names(run) & {".saving", "model.safetensors", "training.jsonl"}
    checkpoints_left = sorted(run.glob("checkpoint-*"))
    assert (checkpoints_left[-1].name if checkpoints_left else None) == whole

    small_disk.make_room()
    assert load_script().main(command) == 0
    straight = train(load_config(ExperimentConfig, str(experiment_file), settings))
    record = read_records(run / "training.jsonl")[0]
    assert (record["resumed_from"], record["loss_history"]) == (whole, straight["loss_history"])
    weights = (Path(folder) / "model.safetensors" for folder in (run, straight["model_dir"]))
    assert len({path.read_bytes() for path in weights}) == 1


def test_other_batches_are_not_gone_on_with(tmp_path: Path) -> None:
    claim(tmp_path, ONE, {**TEXT, BATCH: "16"})
    (tmp_path / "milestones.jsonl").touch()
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("{}")
    write_manifest(tmp_path / "checkpoint-3")
    claim(tmp_path, ONE, {**TEXT, BATCH: "16"})
    assert {"milestones.jsonl", "checkpoint-3"} <= names(tmp_path)
    with pytest.raises(ValueError, match="contains a run of 16 sequences per step, got 8: resume it with as many"):
        claim(tmp_path, ONE, {**TEXT, BATCH: "8"})


def test_the_log_of_a_long_run_may_be_of_any_size(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    state = {"global_step": 3, "best_model_checkpoint": None, "log_history": ["x" * 2**20] * 17}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    assert trainer_state(checkpoint) == state
    write_manifest(checkpoint)
    drop_damaged_checkpoints(tmp_path, needs_best=True)
    assert checkpoint.is_dir()
