"""What a family of models has to say about itself to be converted, and how its config.json is read."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from modeling_alibi_gpt.checkpoints.weight_map import Rule
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.runtime.parsing import read_mapping


Fields = dict[str, Any]

# What transformers, past and present, writes into every config.json without the model reading it.
_BOOKKEEPING = {
    *("auto_map", "cross_attention_hidden_size", "decoder_start_token_id", "finetuning_task", "is_decoder"),
    *("model_type", "name_or_path", "num_labels", "output_attentions", "prefix", "sep_token_id"),
    *("task_specific_params", "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "torch_dtype"),
    *("torchscript", "unk_token_id", "use_bfloat16"),
}
# What every config.json of transformers 4 may hold, where any other value is another function.
_UNUSED: dict[str, Collection[Any]] = {"add_cross_attention": [False], "pruned_heads": [{}, None]}
# Fields that mean the same wherever a family has them.
SHARED_FIELDS = (
    *("vocab_size", "layer_norm_epsilon", "initializer_range", "tie_word_embeddings", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)


# ALiBi as the paper has it, but for the range of its slopes.
PLAIN_ALIBI: dict[str, Collection[Any]] = {
    "position_method": ["alibi"],
    "alibi_beta": [1],
    "alibi_slope_kind": ["geometric"],
    "alibi_bias_inside_scaling": [False],
    "alibi_trainable": ["none"],
    "alibi_scaling": [None],
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of models and the ways between it and AlibiGPT. Adding one is a file and a line in ``FAMILIES``.

    Attributes:
        config_class: Its config in transformers, which knows its fields and their defaults.
        causal_lm: Its causal language model in transformers, or with what its own library has beyond that.
        architectures: Names under which checkpoints of that model, or of its base, are published; that of transformers
            comes first.
        to_alibi_gpt: From its fields, and whether the quirks of its code in transformers are to be reproduced, to
            those of ``AlibiGPTConfig``. Raises a ``ValueError`` that names what cannot be represented.
        rules: The map of tensors, from both sides' fields.
        from_alibi_gpt: From a config of ours, and whether it is for transformers or for other programs, to one of its
            own; None where there is no way out. Raises a ``ValueError`` that names what cannot be represented.
        other_model_types: Older names of the family itself.
        other_names: Other names of fields, older ones and those of the library that it was trained with.
        other_defaults: Fields that its config class lacks but its published configs may have.
        without_effect: Fields in published configs that its code does not read, or that do not change its function.
        ignored_tensors: Regular expressions of tensors in old checkpoints that are no weights.
    """

    config_class: type[PreTrainedConfig]
    causal_lm: type[PreTrainedModel]
    architectures: tuple[str, ...]
    to_alibi_gpt: Callable[[Fields, bool], Fields]
    rules: Callable[[AlibiGPTConfig, Fields], list[Rule]]
    from_alibi_gpt: Callable[[AlibiGPTConfig, bool], PreTrainedConfig] | None = None
    other_model_types: tuple[str, ...] = ()
    other_names: Mapping[str, str] = field(default_factory=dict)
    other_defaults: Mapping[str, Any] = field(default_factory=dict)
    without_effect: tuple[str, ...] = ()
    ignored_tensors: tuple[str, ...] = ()

    def read_fields(self, folder: Path) -> Fields:
        """The fields of ``config.json`` by their present names, with the family's defaults for those that lack.

        Fields of a nested config get its name before them, as in ``attn_config.alibi``.

        Raises:
            ValueError: The folder holds the model with another head, or a field that the family does not know, or
                one of transformers' own at a value that makes it another model.
        """
        written = read_mapping(folder / "config.json")
        _check_architecture(folder, written, self.architectures)
        unused = {name: next(iter(allowed)) for name, allowed in _UNUSED.items()}
        defaults = unused | _defaults(self.config_class) | dict(self.other_defaults)
        for name, config_class in self.config_class.sub_configs.items():
            del defaults[name]
            defaults |= {f"{name}.{key}": value for key, value in _defaults(config_class).items()}
        known = {*defaults, *self.without_effect}
        for name in {name.partition(".")[0] for name in known if "." in name} & set(written):
            inner = written.pop(name) or {}
            written |= {f"{name}.{key}": value for key, value in inner.items()}
        values = _by_present_names(folder, written, {**self.config_class.attribute_map, **self.other_names})
        if unknown := sorted(name for name in values if name not in known and not _is_bookkeeping(name)):
            raise ValueError(
                f"{folder}: config.json holds {', '.join(unknown)}, of which it is not known whether the function "
                "depends on it; remove from config.json what has no effect"
            )
        found = defaults | values
        refuse_other_values(f"{folder}: this model cannot be an AlibiGPT", found, _UNUSED)
        return found


def shared_fields(values: Mapping[str, Any]) -> Fields:
    """Fields that keep their name and meaning."""
    return {name: values[name] for name in SHARED_FIELDS}


def decoder_sizes(config: AlibiGPTConfig) -> dict[str, Collection[Any]]:
    """What sizes must be where a format has one for heads and one, four times the width, for the MLP."""
    return {
        "num_key_value_heads": [config.num_attention_heads],
        "head_dim": [config.hidden_size / config.num_attention_heads],
        "intermediate_size": [4 * config.hidden_size],
        "qk_norm": [False],
    }


def refuse_other_values(
    sentence: str,
    values: Mapping[str, Any],
    expected: Mapping[str, Collection[Any]],
    *,
    remedy: str = "",
    remedies: Mapping[str, str] | None = None,
) -> None:
    """Raise a ``ValueError`` unless every field has one of the values it may have; it names all that stand in the way.

    Args:
        sentence: How the message begins.
        values: Fields.
        expected: The values that fields may have.
        remedy: How the message ends, where one of the fields is wrong that ``remedies`` does not name.
        remedies: What to do about single fields.
    """
    wrong = [name for name, allowed in expected.items() if values[name] not in allowed]
    if not wrong:
        return
    found = [
        f"{name} is {values[name]!r} (it must be {' or '.join(repr(value) for value in expected[name])})"
        for name in wrong
    ]
    advice = dict.fromkeys((remedies or {}).get(name, remedy) for name in wrong)
    raise ValueError("; ".join([f"{sentence}: {', '.join(found)}", *filter(None, advice)]))


def _is_bookkeeping(name: str) -> bool:
    name = name.rpartition(".")[2]
    return name.startswith("_") or name in _BOOKKEEPING or name in GenerationConfig().to_dict()


def _by_present_names(folder: Path, written: Fields, names: Mapping[str, str]) -> Fields:
    """Fields by their present names; one that stands there under two names must have one value."""
    values: Fields = {}
    first: dict[str, str] = {}
    for name, value in written.items():
        present = names.get(name, name)
        if values.setdefault(present, value) != value:
            raise ValueError(
                f"{folder}: {first[present]} and {name} of config.json are one field, "
                f"got {values[present]!r} and {value!r}; remove the wrong one"
            )
        first.setdefault(present, name)
    return values


def _defaults(config_class: type[PreTrainedConfig]) -> Fields:
    """Fields of a config class with the values they have where nothing is said, before others are derived of them."""
    return {field.name: None if field.default is MISSING else field.default for field in fields(config_class)}


def _check_architecture(folder: Path, written: Fields, architectures: Sequence[str]) -> None:
    """Refuse weights of another head, whose tensors would have no place."""
    for architecture in written.get("architectures") or ():
        if architecture not in architectures:
            raise ValueError(
                f"{folder}: config.json says {architecture}; language models are converted, "
                f"expected {' or '.join(architectures)}"
            )
