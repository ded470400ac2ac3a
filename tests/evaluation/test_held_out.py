"""What a model trained on must not count as held out: evaluations know which share of a text its training read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from alibi_gpt_cli.main import main
from modeling_alibi_gpt.data.corpora import describe_documents, load_documents
from modeling_alibi_gpt.evaluation.measurement import MeasurementConfig, check_held_out, load_text_documents


SOURCE = "text:books/*.txt"


DOCUMENTS = Dataset.from_dict({"name": ["books/1.txt"], "text": ["A text."]})


def config(**settings: Any) -> MeasurementConfig:
    return MeasurementConfig(**{"source": SOURCE, "split": "validation", **settings})


@pytest.mark.parametrize(
    ("trained", "settings"),
    [
        ({}, {"validation_fraction": 0.2}),
        ({"validation_fraction": 0.05}, {}),
        ({"validation_unit": "document"}, {}),
        ({}, {"validation_unit": "document"}),
        (
            {"source": [{"source": "text:x", "weight": 1}, {"source": SOURCE, "weight": 1}]},
            {"validation_fraction": 0.2},
        ),
        ({"validation_source": "text:other/*.txt"}, {}),
    ],
)
def test_a_share_that_was_trained_on_is_refused(trained: dict[str, Any], settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="split validation of text:books/.* contains text that .* was trained on"):
        check_held_out(config(**settings), DOCUMENTS, {"source": SOURCE, **trained}, "runs/x")


@pytest.mark.parametrize(
    ("trained", "settings"),
    [
        ({}, {}),
        ({}, {"validation_fraction": 0.05}),
        ({"validation_fraction": 0.05}, {"validation_fraction": 0.05}),
        ({"validation_unit": "tail"}, {}),
        ({"validation_unit": "document"}, {"validation_unit": "document"}),
        ({"validation_fraction": 0.05}, {"split": "all"}),
        ({"validation_fraction": 0.05}, {"source": "text:other/*.txt"}),
        ({"validation_fraction": 0.05, "source": "stdlib"}, {"source": "stdlib"}),
        ({"validation_source": SOURCE, "source": "text:other/*.txt"}, {"validation_fraction": 0.5}),
        ({"source": 7}, {}),
    ],
)
def test_what_was_held_out_or_chosen_is_measured(trained: dict[str, Any], settings: dict[str, Any]) -> None:
    check_held_out(config(**settings), DOCUMENTS, {"source": SOURCE, **trained}, "runs/x")


@pytest.mark.parametrize("spelled", ["./*.txt", "1.txt", "../books/[1-3].txt", "link"])
def test_a_source_that_is_spelled_otherwise_is_still_the_one_trained_on(
    spelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "books").mkdir()
    monkeypatch.chdir(tmp_path / "books")
    for name in ("1.txt", "2.txt", "elsewhere"):
        Path(name).write_text("A text.", encoding="utf-8")
    Path("link").symlink_to("2.txt")
    trained = {"source": f"text:{tmp_path}/books/*.txt", "validation_fraction": 0.05}
    with pytest.raises(ValueError, match="contains text that runs/x was trained on: its training held out"):
        check_held_out(config(source=f"text:{spelled}"), DOCUMENTS, trained, "runs/x")
    check_held_out(config(source=f"text:{spelled}", validation_fraction=0.05), DOCUMENTS, trained, "runs/x")
    check_held_out(config(source="text:elsewhere"), DOCUMENTS, trained, "runs/x")


def test_whole_documents_that_were_held_out_can_be_measured(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.txt").write_text(f"text number {number}\n" * 20, encoding="utf-8")
    source = f"text:{tmp_path}/*.txt"
    found = load_text_documents(config(source=source, validation_unit="document", validation_fraction=0.3))
    held_out = load_documents(source, "validation", validation_unit="document", validation_fraction=0.3)
    assert describe_documents(found) == describe_documents(held_out)
    assert 0 < len(set(found["name"])) < 12


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        ({}, "held out validation_fraction 0.1 "),
        ({"validation_source": "stdlib"}, "held out nothing"),
        ({"validation_fraction": 0.6}, None),
    ],
)
def test_a_dataset_without_a_validation_split_is_checked(
    trained: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    rows = [json.dumps({"text": f"text number {number}"}) for number in range(40)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    source = f"hub:{tmp_path}"
    settings = config(source=source, validation_fraction=0.5)
    documents = load_text_documents(settings)
    if message is None:
        check_held_out(settings, documents, {"source": source, **trained}, "runs/x")
    else:
        with pytest.raises(ValueError, match=message):
            check_held_out(settings, documents, {"source": source, **trained}, "runs/x")
    (tmp_path / "validation.jsonl").write_text("\n".join(rows), encoding="utf-8")
    check_held_out(settings, load_text_documents(settings), {"source": source, **trained}, "runs/x")


@pytest.mark.parametrize("command", ["evaluate", "extrapolate", "context", "sweep"])
def test_commands_read_how_a_model_was_trained(
    command: str,
    make_folder: Callable[[str], str],
    source: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in Path(make_folder("alibi")).iterdir():
        (folder / path.name).symlink_to(path)
    data = {"source": source, "validation_fraction": 0.01}
    (folder / "experiment.json").write_text(json.dumps({"data": data}), encoding="utf-8")
    model = {"evaluate": f"model={folder}", "sweep": f"checkpoint={folder}"}.get(command, f"models=[{folder}]")
    output = "output_dir" if command == "sweep" else "output"
    settings = [model, f"source={source}", "split=validation", f"{output}={tmp_path / 'out'}"]
    settings += ["mode=posthoc", "betas=[1.0]"] if command == "sweep" else []
    assert main([command, *(word for setting in settings for word in ("--set", setting))]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: split validation of {source} contains text that {folder} was trained on")
    assert not (tmp_path / "out").exists()
