"""``python -m alibi_gpt_cli.schemas`` writes the JSON schemas of all settings, which editors and ``--help`` read.

They are committed, so that ``--help`` names every key without the seconds that importing torch takes.
"""

import dataclasses
import importlib
import inspect
import json
import re
import typing
from collections.abc import Callable
from typing import Any

import yaml

from alibi_gpt_cli.benchmark import benchmark, find_benchmarks
from alibi_gpt_cli.compare import compare
from alibi_gpt_cli.context import context
from alibi_gpt_cli.convert import convert
from alibi_gpt_cli.evaluate import evaluate
from alibi_gpt_cli.export import export
from alibi_gpt_cli.extrapolate import extrapolate
from alibi_gpt_cli.generate import generate
from alibi_gpt_cli.init import CONFIGS
from alibi_gpt_cli.margins import margins
from alibi_gpt_cli.recall import recall
from alibi_gpt_cli.report import report
from alibi_gpt_cli.settings_help import SCHEMAS
from alibi_gpt_cli.sweep import sweep
from alibi_gpt_cli.train import train


DIALECT = "https://json-schema.org/draft/2020-12/schema"
# By schema: the command that reads these settings, and their class.
SETTINGS: dict[str, tuple[Callable[..., None], str]] = {
    "experiment": (train, "modeling_alibi_gpt.training.experiment.ExperimentConfig"),
    "evaluation": (evaluate, "modeling_alibi_gpt.evaluation.perplexity.PerplexityConfig"),
    "extrapolation": (extrapolate, "modeling_alibi_gpt.evaluation.extrapolation.ExtrapolationConfig"),
    "context": (context, "modeling_alibi_gpt.evaluation.context.ContextConfig"),
    "recall": (recall, "modeling_alibi_gpt.evaluation.recall.RecallConfig"),
    "margins": (margins, "modeling_alibi_gpt.evaluation.margins.MarginsConfig"),
    "comparison": (compare, "modeling_alibi_gpt.experiments.compare.ComparisonConfig"),
    "sweep": (sweep, "modeling_alibi_gpt.experiments.sweep_config.SweepConfig"),
    "conversion": (convert, "modeling_alibi_gpt.checkpoints.convert.conversion.ConvertConfig"),
    "export": (export, "modeling_alibi_gpt.checkpoints.hub.ExportConfig"),
    "generation": (generate, "modeling_alibi_gpt.evaluation.generation.GenerateConfig"),
    "report": (report, "modeling_alibi_gpt.report.report.ReportConfig"),
    "benchmark": (benchmark, "benchmarks.run.BenchmarkConfig"),
}
# Descriptions of the arguments that the example experiments set.
_TRAINING_ARGUMENTS = {
    "adam_beta2": "Decay of Adam's mean of squared gradients.",
    "eval_steps": "Steps between evaluations if `eval_strategy` is `steps`; null means `logging_steps`.",
    "eval_strategy": "When the validation text is evaluated during training.",
    "gradient_accumulation_steps": "Batches on each device whose gradients make one optimizer step.",
    "learning_rate": "Peak learning rate, reached after `warmup_steps`.",
    "logging_steps": "Steps between logged losses; `save_steps` must be a multiple of it.",
    "lr_scheduler_type": "How the learning rate falls after `warmup_steps`.",
    "max_grad_norm": "Gradients with a larger norm are scaled down to this norm; 0 turns this off.",
    "max_steps": "Optimizer steps; -1 trains for `num_train_epochs` over the text.",
    "output_dir": "Folder of the run: its checkpoints, its model and its records.",
    "report_to": "Tracker that also gets the losses, such as `tensorboard`.",
    "save_steps": "Steps between checkpoints.",
    "save_total_limit": "Number of latest checkpoints to keep.",
    "seed": "Seed of weights, order of sequences and dropout.",
    "warmup_steps": "Steps over which the learning rate rises from 0.",
    "weight_decay": "Weight decay; applies to matrices only.",
}


def schema_text(name: str) -> str:
    """The JSON schema of the settings called ``name`` in ``SETTINGS``, as its file holds it.

    The schema does not require a key that the command has an option for.
    """
    from pydantic import TypeAdapter

    command, path = SETTINGS[name]
    find_benchmarks()
    module, _, config_class = path.rpartition(".")
    settings = getattr(importlib.import_module(module), config_class)
    schema = TypeAdapter(settings).json_schema(schema_generator=_generator())
    for key in getattr(settings, "UNUSED", ()):
        del schema["properties"][key]
    options = inspect.signature(command).parameters
    schema["required"] = [key for key in schema.get("required", ()) if key not in options]
    if name == "experiment":
        training = schema["properties"]["training"]
        training["description"] += " The examples set these:"
        training |= {"properties": _training_arguments_of_the_examples(), "required": ["output_dir"]}
        _describe_model(schema["$defs"])
    return json.dumps({"$schema": DIALECT, **_tidied(schema)}, indent=2) + "\n"


def _generator() -> Any:
    from pydantic.json_schema import GenerateJsonSchema

    class Generator(GenerateJsonSchema):
        """Omits titles, which repeat the keys, and includes defaults from factories."""

        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

        def get_default_value(self, schema: Any) -> Any:
            return schema["default_factory"]() if "default_factory" in schema else super().get_default_value(schema)

    return Generator


def _training_arguments_of_the_examples() -> dict[str, Any]:
    """Schemas of the ``TrainingArguments`` that the example experiments set: transformers has more than a hundred.

    Raises:
        KeyError: An example sets one that ``_TRAINING_ARGUMENTS`` does not describe yet.
    """
    from transformers import TrainingArguments

    from modeling_alibi_gpt.training.arguments import DEFAULTS

    hints = typing.get_type_hints(TrainingArguments)
    defaults = {field.name: field.default for field in dataclasses.fields(TrainingArguments)} | DEFAULTS
    examples = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (CONFIGS / "experiment").glob("*.yaml")]
    used = sorted({key for example in examples for key in example["training"]})
    return {
        key: {
            "default": defaults[key],
            "description": _TRAINING_ARGUMENTS[key],
            **_argument(hints[key]),
        }
        for key in used
    }


def _describe_model(sections: dict[str, Any]) -> None:
    """Use the fields of ``AlibiGPTConfig`` for the mappings of a model section; plugins may add fields.

    Fields that its docstring does not describe are set from the tokenizer; the class itself sets ``position_plugin``.
    """
    from pydantic import TypeAdapter

    from modeling_alibi_gpt import AlibiGPTConfig

    (arguments,) = re.findall(r"Args:\n(.*?)\n\n", inspect.cleandoc(AlibiGPTConfig.__doc__ or ""), re.DOTALL)
    entries = re.findall(r"^    (\w[\w, ]*) \(.*?\): (.*?)(?=^    \w|\Z)", arguments, re.DOTALL | re.MULTILINE)
    meanings = {name: meaning for names, meaning in entries for name in names.split(", ")}
    sections["AlibiGPTConfig"] = {
        "type": "object",
        "properties": {
            field.name: {
                **TypeAdapter(AlibiGPTConfig.__annotations__[field.name]).json_schema(),
                "default": field.default,
                "description": meanings[field.name],
            }
            for field in dataclasses.fields(AlibiGPTConfig)
            if field.name in meanings and field.name != "position_plugin"
        },
    }
    fields, reference = sections["ModelSection"]["properties"], {"$ref": "#/$defs/AlibiGPTConfig"}
    fields["config"]["anyOf"][1] = reference
    fields["overrides"] = {**reference, "default": {}, "description": fields["overrides"]["description"]}


def _argument(hint: Any) -> dict[str, Any]:
    """Schema of one of ``TrainingArguments``; if transformers lists names, only these are valid."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(hint).json_schema()
    names = [each["enum"] for each in schema.get("$defs", {}).values()]
    return {"enum": names[0], "type": "string"} if names else schema


def _tidied(schema: Any) -> Any:
    """Make every description one line, with code marked as in Markdown."""
    if isinstance(schema, list):
        return [_tidied(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: " ".join(value.split()).replace("``", "`")
        if key == "description" and isinstance(value, str)
        else _tidied(value)
        for key, value in schema.items()
    }


def main() -> None:
    """Write every schema."""
    SCHEMAS.mkdir(exist_ok=True)
    for name in SETTINGS:
        (SCHEMAS / f"{name}.json").write_text(schema_text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
