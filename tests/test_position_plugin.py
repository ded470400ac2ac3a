"""A position method from outside the package: a class, its config fields, and a saved folder that names its module."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM

from alibi_gpt_cli.main import main
from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM, PositionMethod, register_position_method
from modeling_alibi_gpt.checkpoints.hub import ExportConfig, export_to_hub
from modeling_alibi_gpt.position_methods import POSITION_METHODS


PAGE = Path(__file__).parent.parent / "docs" / "extension.md"
# The example of the documentation: all that a method of one's own needs.
(PLUGIN,) = re.findall(r"```python\n(# my_positions.py\n.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
SIZES = {"vocab_size": 61, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}


@pytest.fixture(autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "my_positions.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(folder)
    importlib.import_module("my_positions")
    yield
    forget()


@pytest.fixture
def without_plugin(plugin: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own; a plugin is found there only."""
    monkeypatch.setattr(sys, "path", sys.path[1:])
    monkeypatch.chdir(tmp_path)


def forget() -> None:
    """As in a process that never imported the plugin."""
    POSITION_METHODS.pop("mine", None)
    sys.modules.pop("my_positions", None)


def make_model(back_end: str = "sdpa") -> AlibiGPTForCausalLM:
    torch.manual_seed(0)
    config = AlibiGPTConfig(**SIZES, position_method="mine", mine_strength=0.5, attn_implementation=back_end)
    return AlibiGPTForCausalLM(config).eval()


def test_fields_of_its_own_have_defaults_and_round_trip(tmp_path: Path) -> None:
    assert AlibiGPTConfig(**SIZES, position_method="mine").mine_strength == 1.0
    config = AlibiGPTConfig(**SIZES, position_method="mine", mine_strength=0.5)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["position_plugin"], saved["mine_strength"]) == ("my_positions", 0.5)
    for loaded in (AlibiGPTConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert (loaded.position_method, loaded.mine_strength) == ("mine", 0.5)
    assert AlibiGPTConfig.from_pretrained(tmp_path, mine_strength=0.25).mine_strength == 0.25
    with pytest.raises(ValueError, match="unknown field 'mine_strenght'.*did you mean 'mine_strength'"):
        AlibiGPTConfig(**SIZES, position_method="mine", mine_strenght=0.5)
    with pytest.raises(ValueError, match="unknown field 'mine_strength'"):
        AlibiGPTConfig(**SIZES, mine_strength=0.5)


@pytest.mark.parametrize("length", [12, 600])
def test_sdpa_computes_what_eager_does(length: int) -> None:
    """Float32 logits of order one; 600 tokens are enough for strips. The bias is felt: another strength differs."""
    input_ids = torch.randint(61, (2, length), generator=torch.Generator().manual_seed(1))
    model = make_model("eager")
    with torch.no_grad():
        expected = model(input_ids).logits
        model.set_attn_implementation("sdpa")
        torch.testing.assert_close(model(input_ids).logits, expected, atol=1e-5, rtol=0)
        model.config.mine_strength = 5.0
        assert (model(input_ids).logits - expected).abs().max() > 1e-3


def test_a_model_is_loaded_bit_for_bit_and_generates(tmp_path: Path) -> None:
    model, input_ids = make_model(), torch.arange(10)[None]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(input_ids).logits, loaded(input_ids).logits)
    cached, whole = (
        loaded.generate(input_ids, max_new_tokens=8, do_sample=False, use_cache=use_cache, pad_token_id=0)
        for use_cache in (True, False)
    )
    assert torch.equal(cached, whole)


def test_without_its_plugin_a_folder_says_what_to_import(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    forget()
    for load in (AlibiGPTConfig.from_pretrained, AutoConfig.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises((ValueError, StrictDataclassError), match="by the module 'my_positions': import it"):
            load(tmp_path)
    # A name in a file is not followed: that would run any code that somebody else put there.
    assert "my_positions" not in sys.modules
    importlib.import_module("my_positions")
    assert AlibiGPTConfig.from_pretrained(tmp_path).mine_strength == 0.5


def test_a_folder_for_the_hub_would_miss_the_plugin(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="uses a position_method from 'my_positions', whose code cannot be exported"):
        export_to_hub(ExportConfig(model=str(tmp_path / "model"), output_dir=str(tmp_path / "hub")))
    assert not (tmp_path / "hub").exists()


def test_check_config_is_asked() -> None:
    class Picky(PositionMethod):
        config_fields = {"picky_number": 1}

        @classmethod
        def check_config(cls, config: AlibiGPTConfig) -> None:
            if config.picky_number < 1:
                raise ValueError(f"picky_number must be at least 1, got {config.picky_number}")

    POSITION_METHODS.pop("mine")
    register_position_method("mine", Picky)
    with pytest.raises((ValueError, StrictDataclassError), match="picky_number must be at least 1, got 0"):
        AlibiGPTConfig(**SIZES, position_method="mine", picky_number=0)


def test_what_cannot_be_registered() -> None:
    class Other(PositionMethod):
        pass

    class Private(PositionMethod):
        config_fields = {"_hidden": 1}

    class Hides(PositionMethod):
        config_fields = {"hidden_size": 1}

    for name in ("alibi", "mine"):
        with pytest.raises(ValueError, match=f"position_method '{name}' is already registered by "):
            register_position_method(name, Other)
    with pytest.raises(ValueError, match="must be a subclass of PositionMethod, got <class 'int'>"):
        register_position_method("number", int)
    with pytest.raises(ValueError, match="config_fields must be public names, got '_hidden'"):
        register_position_method("private", Private)
    POSITION_METHODS.pop("mine")
    register_position_method("mine", Hides)
    with pytest.raises(ValueError, match="config_fields of 'mine' hide attributes of AlibiGPTConfig: hidden_size"):
        AlibiGPTConfig(**SIZES, position_method="mine")


def run_command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own that starts in ``folder``, as an installed command does: without it on its path."""
    code = "import sys; sys.path.remove(''); from alibi_gpt_cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def write_experiment(folder: Path) -> None:
    (folder / "my_positions.py").write_text(PLUGIN, encoding="utf-8")
    (folder / "text.txt").write_text("one line of words after another\n" * 400, encoding="utf-8")
    sizes = {"vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3}
    experiment = {
        "name": "mine",
        "plugins": ["my_positions"],
        "model": {"config": {**sizes, "position_method": "mine", "mine_strength": 0.5}},
        "data": {"source": "text:text.txt", "train_length_tokens": 16, "cache_dir": "cache"},
        "training": {"output_dir": "run", "max_steps": 3, "per_device_train_batch_size": 2, "report_to": "none"},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment), encoding="utf-8")


def run_here(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and error output of a command in this process, which never imported the plugin."""
    forget()
    capfd.readouterr()
    code = main(words)
    return code, capfd.readouterr().err


def test_an_experiment_imports_its_plugins_and_a_checkpoint_none(
    tmp_path: Path, without_plugin: None, capfd: pytest.CaptureFixture[str]
) -> None:
    write_experiment(tmp_path)
    trained = run_command(tmp_path, "train", "--config", "experiment.yaml")
    assert trained.returncode == 0, trained.stderr
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["position_plugin"], saved["mine_strength"]) == ("my_positions", 0.5)
    for words in (
        ["generate", "--model", "run", "--prompt", "one", "--set", "max_new_tokens=2"],
        ["evaluate", "--model", "run", "--data", "text:text.txt", "--set", "max_tokens=64"],
        ["extrapolate", "--models", "run", "--data", "text:text.txt", "--lengths", "16", "--set", "max_tokens=64"],
    ):
        code, errors = run_here(capfd, *words)
        assert code == 2 and errors.count("\n") == 1, errors
        assert "by the module 'my_positions': import it" in errors and "'plugins'" in errors
        code, errors = run_here(capfd, *words, "--set", "plugins=[my_positions]")
        assert code == 0, errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "error: plugins: no module 'my_positions' is installed or in "),
        ("import no_such_package", "error: plugins: 'my_positions' needs the module 'no_such_package', which is not"),
        ("1 / 0", "error: plugins: 'my_positions' cannot be imported: ZeroDivisionError: division by zero"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_one_line(
    tmp_path: Path, without_plugin: None, capfd: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    write_experiment(tmp_path)
    (tmp_path / "my_positions.py").unlink()
    if text is not None:
        (tmp_path / "my_positions.py").write_text(text)
    code, errors = run_here(capfd, "train", "--config", "experiment.yaml")
    assert code == 2 and errors.count("\n") == 1 and errors.startswith(message), errors
    assert not (tmp_path / "run").exists()
