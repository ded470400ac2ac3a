"""Model cards of written checkpoints: license, origin of the model and how to load it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

import modeling_alibi_gpt
from modeling_alibi_gpt.checkpoints.companions import companion_files


CARD = "README.md"
PROGRAM = f"alibi-gpt {modeling_alibi_gpt.__version__}"
LICENSE_FIELDS = ("license", "license_name", "license_link")
# Enclose the part of a card about its own folder, which a copy replaces.
_START, _END = "<!-- alibi-gpt: this folder -->", "<!-- alibi-gpt: end -->"
_OF_THE_FOLDER = re.compile(rf"{re.escape(_START)}.*?{re.escape(_END)}\s*", re.DOTALL)
_LOAD = """```python
{imports}from transformers import {auto_class}, AutoTokenizer

folder = "."  # this folder, or its name on the Hub
model = {auto_class}.from_pretrained(folder{arguments})
tokenizer = AutoTokenizer.from_pretrained(folder{arguments})
```"""
_REGISTERS = "import modeling_alibi_gpt  # from the package alibi-gpt; registers the model with transformers\n"
GGUF_USAGE = """```bash
llama-completion -m model.gguf -no-cnv -p "Once upon a time" -n 50
echo "FROM ./model.gguf" > Modelfile && ollama create my-model && ollama run my-model
```"""


def read_card(folder: Path) -> ModelCard:
    """Read the model card of a folder, or an empty card if there is none.

    Raises:
        ValueError: The front matter, between lines of ``---``, is not a YAML mapping.
    """
    cards = companion_files(folder, [CARD])
    try:
        return ModelCard.load(cards[0], ignore_metadata_errors=True) if cards else ModelCard("---\n{}\n---\n")
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{cards[0]}: the front matter between --- is not a YAML mapping ({reason})") from error


def save_card(
    folder: Path,
    card: ModelCard,
    *,
    summary: str,
    usage: str,
    tags: Sequence[str] = ("alibi",),
    library_name: str = "transformers",
    **fields: Any,
) -> None:
    """Write a model card with updated metadata, and with a part about this folder at the start of its text.

    Args:
        folder: Folder to write the card to.
        card: The card of the source, or a new one. Its text is kept, except for the part about its own folder.
        summary: Contents of the folder, in one or two sentences.
        usage: How to load the model, in Markdown.
        tags: Tags to add to those of the card.
        library_name: Name of the library on the Hub.
        **fields: Further metadata, which replaces that of the card.
    """
    tag = card.data.get("pipeline_tag") or "text-generation"
    for name, value in {"pipeline_tag": tag, **fields, "library_name": library_name}.items():
        setattr(card.data, name, value)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *tags]))
    text = _OF_THE_FOLDER.sub("", card.text).strip()
    card.text = f"\n{_START}\n{summary}\n\n{usage}\n{_END}\n\n{text}".rstrip() + "\n"
    card.save(folder / CARD)


def loading_code(model_type: str, *, with_own_code: bool = False, auto_class: str = "AutoModelForCausalLM") -> str:
    """Python that loads the folder, in Markdown.

    Args:
        model_type: Model type in its config.
        with_own_code: Whether the folder contains the code of its model.
        auto_class: Class of transformers that loads the model.
    """
    ours = model_type == "alibi_gpt" and not with_own_code
    arguments = ", trust_remote_code=True" if with_own_code else ""
    return _LOAD.format(imports=_REGISTERS if ours else "", arguments=arguments, auto_class=auto_class)
