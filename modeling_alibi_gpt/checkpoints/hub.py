"""Export a checkpoint folder with the code of its model, for users who have not installed this package."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

import modeling_alibi_gpt
from modeling_alibi_gpt.checkpoints.companions import (
    TOKENIZER_FILES,
    companion_files,
    copy_files,
    name_tokenizer_class,
    refuse_link,
    written_files,
)
from modeling_alibi_gpt.checkpoints.folder import stored_shapes, weight_files
from modeling_alibi_gpt.checkpoints.load import load_model_config, load_model_tokenizer
from modeling_alibi_gpt.checkpoints.model_card import PROGRAM, loading_code, read_card, save_card
from modeling_alibi_gpt.checkpoints.weight_map import LM_HEAD
from modeling_alibi_gpt.runtime.atomic import atomic_directory
from modeling_alibi_gpt.runtime.config import UserPath, config_dataclass


PACKAGE = Path(modeling_alibi_gpt.__file__).parent
# Every class that a user may load, independent of the class that the weights were trained as.
AUTO_MAP = {
    "AutoConfig": "configuration_alibi_gpt.AlibiGPTConfig",
    "AutoModel": "modeling_alibi_gpt.AlibiGPTModel",
    "AutoModelForCausalLM": "modeling_alibi_gpt.AlibiGPTForCausalLM",
    "AutoModelForQuestionAnswering": "modeling_alibi_gpt.AlibiGPTForQuestionAnswering",
    "AutoModelForSequenceClassification": "modeling_alibi_gpt.AlibiGPTForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_alibi_gpt.AlibiGPTForTokenClassification",
}
PIPELINE_TAGS = {
    "AutoModel": "feature-extraction",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}


@config_dataclass
class ExportConfig:
    """Settings of ``alibi-gpt export``."""

    model: UserPath
    """Checkpoint folder."""
    output_dir: UserPath
    """Folder to create; it must be empty if it exists."""


def export_to_hub(config: ExportConfig) -> dict[str, Any]:
    """Write a folder that ``from_pretrained(folder, trust_remote_code=True)`` loads without this package.

    Weights, tokenizer and license are copied unchanged, together with the model files of this package. ``config.json``
    names the class for every head, ``tokenizer_config.json`` that of the tokenizer, and the model card explains how to
    load the model. No other code is copied.

    Returns:
        ``output_dir`` and the names of the ``files`` in it.

    Raises:
        ValueError: The model folder does not contain a complete AlibiGPT with safetensors weights; a file is a link;
            the tokenizer has custom code, cannot be loaded or has more tokens than the model; or the output folder is
            not empty.
    """
    source, target = Path(config.model), Path(config.output_dir).resolve()
    model_config = load_model_config(source)
    if model_config.model_type != "alibi_gpt":
        raise ValueError(f"{source} contains a model of type {model_config.model_type}, expected alibi_gpt")
    if model_config.position_plugin is not None:
        raise ValueError(
            f"{source} uses a position_method from {model_config.position_plugin!r}, whose code cannot be exported"
        )
    auto_class = _auto_class(model_config.architectures)
    _check_complete(source, model_config, AUTO_MAP[auto_class].rpartition(".")[2])
    files, card = _files_to_copy(source), read_card(source)
    if any(path.name in TOKENIZER_FILES for path in files):
        load_model_tokenizer(source)
    with atomic_directory(target) as tmp_path:
        copy_files(files, source, tmp_path)
        copy_files(_code_files(), PACKAGE, tmp_path)
        name_tokenizer_class(source, tmp_path)
        fields = json.loads((source / "config.json").read_text(encoding="utf-8"))
        fields["auto_map"] = AUTO_MAP
        fields.pop("custom_pipelines", None)  # names code that is not copied
        (tmp_path / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_card(
            tmp_path,
            card,
            summary=f"{source.resolve().name} with its model code, exported by {PROGRAM}.",
            usage=loading_code(model_config.model_type, with_own_code=True, auto_class=auto_class),
            tags=[model_config.position_method],
            pipeline_tag=PIPELINE_TAGS[auto_class],
        )
    return {"output_dir": config.output_dir, "files": written_files(target)}


def _auto_class(architectures: list[str] | None) -> str:
    """The class that loads all weights of a model."""
    classes = {name.rpartition(".")[2]: auto_class for auto_class, name in AUTO_MAP.items()}
    return classes.get((architectures or [""])[0], "AutoModelForCausalLM")


def _check_complete(source: Path, config: PreTrainedConfig, class_name: str) -> None:
    """Refuse a folder that lacks weights which are optional elsewhere, because training can initialize them."""
    if getattr(config, "quantization_config", None) is not None:  # its weights have other names
        return
    with torch.device("meta"):
        model = getattr(modeling_alibi_gpt, class_name)(config)
    prefix, tied = f"{model.base_model_prefix}.", {LM_HEAD} if config.tie_word_embeddings else set()
    stored = {name.removeprefix(prefix) for name in stored_shapes(source)} | tied
    if missing := [name for name in model.state_dict() if name.removeprefix(prefix) not in stored]:
        raise ValueError(
            f"{source}: weights of {class_name} are missing ({len(missing):,}), e.g. {missing[0]}; "
            "from_pretrained would initialize them"
        )


def _files_to_copy(source: Path) -> list[Path]:
    weights = list(weight_files(source))
    if SAFE_WEIGHTS_NAME not in {path.name for path in weights}:
        weights.append(source / SAFE_WEIGHTS_INDEX_NAME)
    for path in weights:
        refuse_link(path)
    return [*weights, *companion_files(source)]


def _code_files() -> list[Path]:
    """The model code: exactly the files directly in the package, except for __init__.py and __main__.py."""
    return [path for path in PACKAGE.glob("*.py") if not path.name.startswith("__")]
