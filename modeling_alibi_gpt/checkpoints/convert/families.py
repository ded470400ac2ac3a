"""The description of a model family for conversion, and reading its config.json."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from modeling_alibi_gpt.checkpoints.weight_map import Rule
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.runtime.parsing import read_mapping


Fields = dict[str, Any]

# Fields that versions of transformers write into every config.json but that models do not use.
_BOOKKEEPING = {
    *("auto_map", "cross_attention_hidden_size", "decoder_start_token_id", "finetuning_task", "is_decoder"),
    *("model_type", "name_or_path", "num_labels", "output_attentions", "prefix", "sep_token_id"),
    *("task_specific_params", "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "torch_dtype"),
    *("torchscript", "unk_token_id", "use_bfloat16"),
}
# Fields that any config.json of transformers 4 may have, with the values that do not change the computation.
_UNUSED: dict[str, Collection[Any]] = {"add_cross_attention": [False], "pruned_heads": [{}, None]}
# Fields with the same meaning in every family.
SHARED_FIELDS = (
    *("vocab_size", "layer_norm_epsilon", "initializer_range", "tie_word_embeddings", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)


# ALiBi as in the paper, except for the range of its slopes.
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
    """A model family and its conversions from and to AlibiGPT. A new family needs a file and a line in ``FAMILIES``.

    Attributes:
        config_class: Config class in transformers, which defines the fields and their defaults.
        causal_lm: Causal language model in transformers, possibly extended by what its own library adds.
        architectures: Names under which checkpoints of that model or its base are published; the name in transformers
            comes first.
        to_alibi_gpt: Maps fields of the family, and whether to reproduce quirks of transformers, to fields of
            ``AlibiGPTConfig``. Raises a ``ValueError`` that names what cannot be represented.
        rules: Returns the mapping of tensors from the fields of both sides.
        from_alibi_gpt: Maps an ``AlibiGPTConfig``, and whether it is for transformers, to a config of the family; None
            if export is not possible. Raises a ``ValueError`` that names what cannot be represented.
        other_model_types: Older model types of the family.
        other_names: Other names of fields: older ones and those of the library that it was trained with.
        other_defaults: Fields that the config class lacks but published configs may have, with their defaults.
        without_effect: Fields in published configs that do not change what the model computes.
        ignored_tensors: Regular expressions for tensors in old checkpoints that are not weights.
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
        """Read the fields of ``config.json`` by their current names, with defaults for missing fields.

        Fields of a nested config are prefixed with its name, as in ``attn_config.alibi``.

        Raises:
            ValueError: The model has another head, a field is unknown to the family, or a general field of
                transformers has a value that changes the computation.
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
                f"{folder}: config.json has unknown fields that might change the computation: {', '.join(unknown)}; "
                "remove those that have no effect"
            )
        found = defaults | values
        refuse_other_values(f"{folder}: this model cannot be an AlibiGPT", found, _UNUSED)
        return found


def shared_fields(values: Mapping[str, Any]) -> Fields:
    """The fields that keep their name and meaning."""
    return {name: values[name] for name in SHARED_FIELDS}


def decoder_sizes(config: AlibiGPTConfig) -> dict[str, Collection[Any]]:
    """Allowed sizes for a format without grouped heads, whose head and MLP sizes follow from ``hidden_size``."""
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
    """Raise a ``ValueError`` that names every field with a value that is not allowed.

    Args:
        sentence: Beginning of the message.
        values: Fields to check.
        expected: Allowed values by field.
        remedy: End of the message, if ``remedies`` lacks one of the wrong fields.
        remedies: Remedies for single fields.
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
    """Fields by their current names; a field that occurs under two names must have one value."""
    values: Fields = {}
    first: dict[str, str] = {}
    for name, value in written.items():
        present = names.get(name, name)
        if values.setdefault(present, value) != value:
            raise ValueError(
                f"{folder}: {first[present]} and {name} in config.json are the same field, "
                f"got {values[present]!r} and {value!r}; remove the wrong one"
            )
        first.setdefault(present, name)
    return values


def _defaults(config_class: type[PreTrainedConfig]) -> Fields:
    """Fields of a config class with their defaults, before derived values are computed."""
    return {field.name: None if field.default is MISSING else field.default for field in fields(config_class)}


def _check_architecture(folder: Path, written: Fields, architectures: Sequence[str]) -> None:
    """Refuse models with another head, whose tensors have no equivalent."""
    for architecture in written.get("architectures") or ():
        if architecture not in architectures:
            raise ValueError(
                f"{folder}: config.json names the architecture {architecture}, but only language models can be "
                f"converted: expected {' or '.join(architectures)}"
            )
