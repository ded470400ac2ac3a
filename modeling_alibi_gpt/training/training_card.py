"""The model card of a finished run: text and figures from its record, license from the checkpoint it started from."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard
from transformers import PreTrainedConfig

from modeling_alibi_gpt.checkpoints.companions import copy_licenses
from modeling_alibi_gpt.checkpoints.model_card import LICENSE_FIELDS, PROGRAM, loading_code, read_card, save_card
from modeling_alibi_gpt.training.experiment import ExperimentConfig


logger = logging.getLogger(__name__)


def save_training_card(
    config: ExperimentConfig, record: dict[str, Any], model: PreTrainedConfig, folder: Path
) -> None:
    """Write the ``README.md`` of a trained model, and copy the license files of the checkpoint that it started from.

    The card may be published, so it contains no local paths.

    Args:
        config: The experiment.
        record: Its ``training`` record.
        model: Configuration of the trained model.
        folder: Folder of the run.
    """
    card = ModelCard("---\n{}\n---\n")
    card.text = _text(config, record, model)
    fields: dict[str, Any] = {"model_name": record["name"], "eval_results": _results(config, record)}
    if datasets := _hub_names(config):
        fields["datasets"] = datasets
    if config.model.checkpoint is not None:
        fields |= _of_the_checkpoint(config.model.checkpoint, folder)
    save_card(
        folder,
        card,
        summary=f"{record['name']}, trained by {PROGRAM}.",
        usage=loading_code(model.model_type),
        tags=[record["position_method"]],
        **fields,
    )


def _text(config: ExperimentConfig, record: dict[str, Any], model: PreTrainedConfig) -> str:
    rows = {
        "model type": f"`{model.model_type}`, positions `{record['position_method']}`{_beta(model)}",
        "parameters": f"{record['num_parameters']:,}",
        "text": f"{_source(config)} (fingerprint `{record['provenance']['data_fingerprint']}`)",
        "training": f"{record['num_train_tokens']:,} tokens in {record['num_steps']:,} steps, "
        f"sequences of {record['train_length_tokens']:,} tokens",
        "learning rate": f"{record['learning_rate']:g}",
        "seed": str(record["seed"]),
        "validation perplexity": f"{record['validation_perplexity']:.4g}, "
        f"{record['validation_nats_per_token']:.4f} nats per token",
        "validation text": f"{record['num_validation_tokens']:,} tokens of {_validation_source(config)}, in windows "
        f"of {record['train_length_tokens']:,}",
        "source commit": f"`{record['provenance']['git_commit']}`",
    }
    if record["validation_bits_per_byte"] is not None:
        rows["validation perplexity"] += f", {record['validation_bits_per_byte']:.4f} bits per byte"
    lines = [f"# {record['name']}", "", "| | |", "|:--|:--|", *(f"| {name} | {text} |" for name, text in rows.items())]
    return "\n".join(lines) + "\n"


def _beta(model: PreTrainedConfig) -> str:
    if getattr(model, "position_method", None) != "alibi":
        return ""
    return f", β {model.alibi_beta:g}" if model.alibi_trainable == "none" else f", {model.alibi_trainable} learned"


def _source(config: ExperimentConfig) -> str:
    parts = [(_in_words(str(section.source)), weight) for section, weight in config.data.parts]
    return parts[0][0] if len(parts) == 1 else " + ".join(f"{weight:g} {words}" for words, weight in parts)


def _validation_source(config: ExperimentConfig) -> str:
    other = config.data.validation_source
    return _source(config) if other is None else _in_words(other)


def _in_words(source: str) -> str:
    """A source in words, without local paths."""
    kind = source.partition(":")[0]
    if kind in ("hub", "task"):
        return f"`{source}`"
    return "source code of Python's standard library" if kind == "stdlib" else f"local files (`{kind}:`)"


def _hub_names(config: ExperimentConfig) -> list[str]:
    """Datasets on the Hub that were trained on."""
    return _hub_names_of([str(section.source) for section, _ in config.data.parts])


def _hub_names_of(sources: Sequence[str]) -> list[str]:
    """Names of the sources that are datasets on the Hub, without configurations and revisions."""
    return [re.split("[:@]", source)[1] for source in sources if source.startswith("hub:")]


def _results(config: ExperimentConfig, record: dict[str, Any]) -> list[EvalResult]:
    figures = {"perplexity": record["validation_perplexity"], "bits_per_byte": record["validation_bits_per_byte"]}
    other = config.data.validation_source
    names = _hub_names(config) if other is None else _hub_names_of([other])
    dataset = {"dataset_name": _validation_source(config), "dataset_type": (names or ["text"])[0]}
    return [
        EvalResult(
            task_type="text-generation", metric_type=name, metric_value=value, dataset_split="validation", **dataset
        )
        for name, value in figures.items()
        if value is not None
    ]


def _of_the_checkpoint(checkpoint: str, folder: Path) -> dict[str, Any]:
    """Metadata that a model inherits from its checkpoint, after copying the license files."""
    if not Path(checkpoint).is_dir():
        try:
            card = ModelCard.load(checkpoint, ignore_metadata_errors=True)
        except (OSError, ValueError) as error:
            logger.warning("cannot read the license of %s (%s); add it to %s/README.md", checkpoint, error, folder)
            return {"base_model": checkpoint}
        return {"base_model": checkpoint, **_license(card)}
    copy_licenses(Path(checkpoint), folder)
    card = read_card(Path(checkpoint))
    return _license(card) | ({"base_model": card.data.base_model} if card.data.base_model else {})


def _license(card: ModelCard) -> dict[str, Any]:
    return {name: value for name in LICENSE_FIELDS if (value := card.data.get(name)) is not None}
