"""What travels with a checkpoint: files by their names, no links and no code but ours."""

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from datasets import Dataset
from huggingface_hub.utils import filter_repo_objects
from transformers import AutoTokenizer

import modeling_alibi_gpt
from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.checkpoints.companions import COMPANION_FILES
from modeling_alibi_gpt.checkpoints.convert.conversion import ConvertConfig, convert
from modeling_alibi_gpt.checkpoints.hub import AUTO_MAP, ExportConfig, export_to_hub
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer
from modeling_alibi_gpt.experiments.beta_objectives import copy_model
from modeling_alibi_gpt.runtime.manifest import write_manifest
from tests.support.conversion_cases import gpt2


OURS = {path.name for path in Path(modeling_alibi_gpt.__file__).parent.glob("*.py")}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An AlibiGPT that BLOOM can hold, with its tokenizer."""
    sizes = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = tmp_path / "source"
    AlibiGPTForCausalLM(
        AlibiGPTConfig(**sizes, hidden_act="gelu_pytorch_tanh", embedding_layer_norm=True)
    ).save_pretrained(folder)
    train_tokenizer(Dataset.from_dict({"text": ["to be or not to be"]}), 300).save_pretrained(folder)
    return folder


def export(source: Path) -> Path:
    export_to_hub(ExportConfig(model=str(source), output_dir=str(source.parent / "out")))
    return source.parent / "out"


def to_bloom(source: Path) -> Path:
    convert(ConvertConfig(model=str(source), output_dir=str(source.parent / "out"), to="bloom"))
    return source.parent / "out"


@pytest.fixture(params=[export, to_bloom])
def make(request: pytest.FixtureRequest) -> Callable[[Path], Path]:
    return request.param


def test_no_code_and_no_unknown_file_travels(make: Callable, source: Path) -> None:
    for name in (
        "tokenizer_evil.py",
        "tokenizer.py",
        "chat_template.py",
        "tokenizer.pkl",
        "vocab.py",
        "experiment.json",
    ):
        (source / name).write_text("raise SystemExit", encoding="utf-8")
    (source / "tokenizer_evil").mkdir()
    known = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    found = {path.name for path in make(source).iterdir()}
    assert known <= found
    assert found <= known | OURS | {"README.md"}


def names_of_vocabularies() -> list[str]:
    """The files that the tokenizers of the installed transformers read, from their code."""
    code = Path(transformers.__file__).parent.glob("models/*/tokenization_*.py")
    found = {"tekken.json", "tiktoken.model"}  # read in place of the file that a class names
    for node in (node for path in code for node in ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VOCAB_FILES_NAMES":
            found |= set(ast.literal_eval(node.value).values())
    # A tokenizer for other versions of transformers, which ``fast_tokenizer_files`` in tokenizer_config.json names.
    return sorted((found - {"tokenizer.json", "tokenizer_config.json"}) | {"tokenizer.4.0.json"})


VOCABULARIES = names_of_vocabularies()


def write_vocabularies(folder: Path) -> None:
    """One text for all names, which no tokenizer reads: the folders have a ``tokenizer.json``, or are not loaded."""
    for name in VOCABULARIES:
        (folder / name).write_text(f"the vocabulary {name}", encoding="utf-8")


def test_vocabularies_of_every_kind_travel(make: Callable, source: Path) -> None:
    assert {"spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model"} <= set(VOCABULARIES)
    write_vocabularies(source)
    assert set(VOCABULARIES) <= {path.name for path in make(source).iterdir()}


def test_vocabularies_of_every_kind_travel_on_the_way_in(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "original")
    write_vocabularies(tmp_path / "original")
    (tmp_path / "original" / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    convert(ConvertConfig(model=str(tmp_path / "original"), output_dir=str(tmp_path / "converted")))
    for name in VOCABULARIES:
        assert (tmp_path / "converted" / name).read_text(encoding="utf-8") == f"the vocabulary {name}"


def test_vocabularies_of_every_kind_are_downloaded() -> None:
    assert list(filter_repo_objects(VOCABULARIES, allow_patterns=list(COMPANION_FILES))) == VOCABULARIES


def test_a_tokenizer_that_is_code_is_refused(make: Callable, source: Path) -> None:
    path = source / "tokenizer_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**fields, "auto_map": {"AutoTokenizer": ["evil/repo--evil.Evil", None]}}))
    with pytest.raises(
        ValueError, match="tokenizer_config.json: the tokenizer has custom code .*evil/repo--evil.Evil"
    ):
        make(source)
    assert not (source.parent / "out").exists()


def test_code_that_the_config_names_stays_behind(source: Path) -> None:
    path = source / "config.json"
    pipelines = {"evil": {"impl": "evil/repo--evil.Evil", "pt": ["AutoModel"]}}
    names = {"AutoModelForCausalLM": "evil/repo--evil.Evil", "AutoTokenizer": "evil/repo--evil.Evil"}
    fields = {**json.loads(path.read_text(encoding="utf-8")), "custom_pipelines": pipelines, "auto_map": names}
    path.write_text(json.dumps(fields), encoding="utf-8")
    written = (export(source) / "config.json").read_text(encoding="utf-8")
    assert "evil" not in written
    assert json.loads(written)["auto_map"] == AUTO_MAP


TEMPLATES = {"default": "{{ messages[0].content }}!", "tool_use": "{{ messages[0].content }} with tools"}


@pytest.fixture
def with_templates(source: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = TEMPLATES
    tokenizer.save_pretrained(source)
    return source


def test_every_chat_template_travels(make: Callable, with_templates: Path) -> None:
    (with_templates / "additional_chat_templates" / "evil.py").write_text("raise SystemExit", encoding="utf-8")
    folder = make(with_templates)
    assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATES
    assert [path.name for path in (folder / "additional_chat_templates").iterdir()] == ["tool_use.jinja"]


def test_every_chat_template_travels_with_the_best_model_of_a_sweep(with_templates: Path) -> None:
    write_manifest(with_templates)  # as a finished training does
    copy_model(with_templates, with_templates.parent / "best")
    assert AutoTokenizer.from_pretrained(with_templates.parent / "best").chat_template == TEMPLATES


def test_every_chat_template_is_downloaded() -> None:
    names = ["additional_chat_templates/evil.py", "additional_chat_templates/tool_use.jinja"]
    assert list(filter_repo_objects(names, allow_patterns=list(COMPANION_FILES))) == names[1:]


@pytest.mark.parametrize("name", ["additional_chat_templates", "additional_chat_templates/tool_use.jinja"])
def test_a_chat_template_elsewhere_is_refused(make: Callable, name: str, with_templates: Path) -> None:
    path = with_templates / name
    path.rename(with_templates.parent / "elsewhere")
    path.symlink_to(with_templates.parent / "elsewhere")
    with pytest.raises(ValueError, match=f"{name} is a symbolic link to .*elsewhere; replace it"):
        make(with_templates)
    assert not (with_templates.parent / "out").exists()


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "tokenizer.json", "generation_config.json"])
def test_a_link_is_refused(make: Callable, name: str, source: Path) -> None:
    """Also one into the folder: what is private there would travel under a name that is not."""
    (source / "secret").write_text("{}", encoding="utf-8")
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to("secret")
    with pytest.raises(ValueError, match=f"{name} is a symbolic link to .*secret; replace it with the file itself"):
        make(source)
    assert not (source.parent / "out").exists()


def test_linked_weights_and_broken_links_are_refused(source: Path) -> None:
    (source / "LICENSE").symlink_to("nowhere")
    with pytest.raises(ValueError, match="LICENSE is a symbolic link to .*nowhere"):
        export(source)
    (source / "LICENSE").unlink()
    (source / "model.safetensors").rename(source.parent / "elsewhere.safetensors")
    (source / "model.safetensors").symlink_to(source.parent / "elsewhere.safetensors")
    with pytest.raises(ValueError, match="model.safetensors is a symbolic link to .*elsewhere.safetensors"):
        export(source)


def test_a_link_out_of_the_cache_of_the_hub_is_refused(source: Path) -> None:
    """A snapshot links to the files that were downloaded with it, and to nothing else."""
    snapshot = source.parent / "models--a--b" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    source.rename(snapshot)
    blobs = source.parent / "models--a--b" / "blobs"
    blobs.mkdir()
    (blobs / "4567").write_text("RAIL", encoding="utf-8")
    (snapshot / "LICENSE").symlink_to("../../blobs/4567")
    (snapshot / "additional_chat_templates").mkdir()
    (snapshot / "additional_chat_templates" / "rag.jinja").symlink_to("../../../blobs/4567")
    folder = export(snapshot)
    for name in ("LICENSE", "additional_chat_templates/rag.jinja"):
        assert (folder / name).read_text(encoding="utf-8") == "RAIL"
    (source.parent / "secret").write_text("secret", encoding="utf-8")
    (snapshot / "NOTICE").symlink_to(source.parent / "secret")
    with pytest.raises(ValueError, match="NOTICE is a symbolic link"):
        export_to_hub(ExportConfig(model=str(snapshot), output_dir=str(source.parent / "again")))
