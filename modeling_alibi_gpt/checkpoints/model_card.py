"""The model card of every folder that is written here: licence, where the model comes from, how it is loaded."""

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
LICENCE_FIELDS = ("license", "license_name", "license_link")
# What a card says about its own folder, which the card of a copy says about that.
_START, _END = "<!-- alibi-gpt: this folder -->", "<!-- alibi-gpt: end -->"
_OF_THE_FOLDER = re.compile(rf"{re.escape(_START)}.*?{re.escape(_END)}\s*", re.DOTALL)
_LOAD = """```python
{imports}from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its name on the Hub
model = AutoModelForCausalLM.from_pretrained(folder{arguments})
tokenizer = AutoTokenizer.from_pretrained(folder)
```"""
_REGISTERS = "import modeling_alibi_gpt  # of the package alibi-gpt, by which transformers knows the model\n"
GGUF_USAGE = """```bash
llama-completion -m model.gguf -no-cnv -p "Once upon a time" -n 50
echo "FROM ./model.gguf" > Modelfile && ollama create my-model && ollama run my-model
```"""


def read_card(folder: Path) -> ModelCard:
    """The model card of a folder; an empty one where there is none.

    Raises:
        ValueError: What its lines of ``---`` enclose is no YAML mapping.
    """
    cards = companion_files(folder, [CARD])
    try:
        return ModelCard.load(cards[0], ignore_metadata_errors=True) if cards else ModelCard("---\n{}\n---\n")
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{cards[0]}: what its lines of --- enclose is no YAML mapping ({reason})") from error


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
    """Write a model card, with these fields in place of its own and a part about this folder in front of its text.

    Args:
        folder: Where the card goes.
        card: The card of the source, or a new one. Its text stays, but for the part about the folder it came from.
        summary: What the folder holds, in a sentence or two.
        usage: How it is loaded, in Markdown.
        tags: Added to those of the card.
        library_name: As the Hub knows it.
        **fields: Further metadata.
    """
    for name, value in {"pipeline_tag": "text-generation", **fields, "library_name": library_name}.items():
        setattr(card.data, name, value)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *tags]))
    text = _OF_THE_FOLDER.sub("", card.text).strip()
    card.text = f"\n{_START}\n{summary}\n\n{usage}\n{_END}\n\n{text}".rstrip() + "\n"
    card.save(folder / CARD)


def loading_code(model_type: str, *, with_own_code: bool = False) -> str:
    """Python that loads the folder, in Markdown.

    Args:
        model_type: Of its config.
        with_own_code: Whether the folder carries the code of its model.
    """
    ours = model_type == "alibi_gpt" and not with_own_code
    arguments = ", trust_remote_code=True" if with_own_code else ""
    return _LOAD.format(imports=_REGISTERS if ours else "", arguments=arguments)
