"""``alibi-gpt init`` writes settings that the other commands take as they stand."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from alibi_gpt_cli.main import main
from modeling_alibi_gpt.runtime.config import load_config
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.model_setup import model_config


ROOT = Path(__file__).parents[2]


def examples(configs: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(configs)): path.read_bytes()
        for path in configs.rglob("*")
        if path.is_file() and path.parent.name != "report"
    }


def test_it_writes_every_example_and_they_work_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["init", str(tmp_path / "mine")]) == 0
    assert examples(tmp_path / "mine" / "configs") == examples(ROOT / "configs")
    assert not (tmp_path / "mine" / "configs" / "report").exists()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["configs"]
    monkeypatch.chdir(tmp_path / "mine")
    config = load_config(ExperimentConfig, "configs/experiment/demo.yaml")
    assert model_config(config.model).model_type == "alibi_gpt"


def test_what_it_says_to_try_is_what_a_shell_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "my runs")]) == 0
    assert f"try: cd '{tmp_path}/my runs' && alibi-gpt train" in capsys.readouterr().out


def test_what_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "configs").mkdir()
    assert main(["init", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/configs already exists")
    assert list((tmp_path / "configs").iterdir()) == []


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def half(source: Path, target: Path, **_: object) -> None:
        target.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", half)
    assert main(["init", str(tmp_path)]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_wheel_carries_them(tmp_path: Path) -> None:
    source = tmp_path / "source"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    assert examples(tmp_path / "installed" / "alibi_gpt_cli" / "configs") == examples(ROOT / "configs")
    tops = {path.name for path in (tmp_path / "installed").iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"alibi_gpt_cli", "modeling_alibi_gpt"}
