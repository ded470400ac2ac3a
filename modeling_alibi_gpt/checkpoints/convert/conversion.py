"""Convert checkpoint folders between AlibiGPT and other families."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from transformers import PreTrainedConfig

from modeling_alibi_gpt.checkpoints.companions import (
    COMPANION_FILES,
    WEIGHT_PATTERNS,
    companion_files,
    copy_files,
    copy_licenses,
    keep_generation_settings,
    let_generate_follow,
    name_tokenizer_class,
    written_files,
)
from modeling_alibi_gpt.checkpoints.convert.bloom import BLOOM
from modeling_alibi_gpt.checkpoints.convert.falcon import FALCON
from modeling_alibi_gpt.checkpoints.convert.families import Family, Fields
from modeling_alibi_gpt.checkpoints.convert.gpt2 import GPT2
from modeling_alibi_gpt.checkpoints.convert.mpt import FLAVOURS, MPT, engines_that_differ, llm_foundry_fields
from modeling_alibi_gpt.checkpoints.gguf.export import export_gguf
from modeling_alibi_gpt.checkpoints.load import DTYPES, check_overrides, load_model_config
from modeling_alibi_gpt.checkpoints.model_card import GGUF_USAGE, PROGRAM, loading_code, read_card, save_card
from modeling_alibi_gpt.checkpoints.model_size import FLOAT32_BYTES, format_bytes, num_parameters
from modeling_alibi_gpt.checkpoints.source_weights import SourceWeights
from modeling_alibi_gpt.checkpoints.streaming import Plan, plan_conversion, write_weights
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.modeling_alibi_gpt import AlibiGPTForCausalLM
from modeling_alibi_gpt.runtime.atomic import atomic_directory, require_empty, write_json
from modeling_alibi_gpt.runtime.config import Count, UserPath, config_dataclass
from modeling_alibi_gpt.runtime.parsing import read_mapping


FAMILIES: dict[str, Family] = {"bloom": BLOOM, "mpt": MPT, "falcon": FALCON, "gpt2": GPT2}
OURS = AlibiGPTConfig.model_type
GGUF = "gguf"
TARGETS = (OURS, *(name for name, family in FAMILIES.items() if family.from_alibi_gpt is not None), GGUF)
# These fields determine the layout of the weights, so another value would misread them.
_LAYOUT_FIELDS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    "intermediate_size",
)
_PICKLE_PATTERNS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


@config_dataclass
class ConvertConfig:
    """Settings of ``alibi-gpt convert``."""

    model: UserPath
    """Checkpoint folder, or name on the Hub."""
    output_dir: UserPath
    """Folder to create; it must be empty if it exists."""
    to: Literal[*TARGETS] = OURS
    """Target format: ``alibi_gpt``, another family to export an AlibiGPT to, or ``gguf`` (a ``model.gguf`` for
    llama.cpp).
    """
    as_transformers: bool = False
    """Reproduce what transformers computes where it differs from how the model was trained. This affects MPT:
    transformers assumes 8 as the range of its slopes, and a fixed MLP width.
    """
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of ``AlibiGPTConfig`` that override the converted ones, except sizes. ``position_method: alibi`` drops
    the learned positions of a GPT-2, which must then be fine-tuned.
    """
    dtype: Literal[*DTYPES] | None = None
    """``float32``, ``bfloat16`` or ``float16``; null keeps the dtype of each tensor, and is float32 for ``gguf``."""
    allow_pickle: bool = False
    """Read pickled weights of other families, with ``weights_only=True``, if there are no others."""
    max_shard_bytes: Count = 5 * 10**9
    """Maximum size of a weight file; larger checkpoints are split into several files."""
    flavour: Literal[*FLAVOURS] = FLAVOURS[0]
    """For ``mpt``: ``transformers`` writes its ``MptForCausalLM``. ``llm-foundry`` writes the ``MPTForCausalLM`` of
    the library that MPTs were trained with, for vLLM, CTranslate2 and llama.cpp's converter; it may have biases and
    another ``alibi_bias_max``.
    """
    context_length_tokens: Count | None = None
    """Maximum text length that other programs assume, although ALiBi has no limit; null is the training length. MPT in
    transformers cannot read a longer text, and vLLM and llama-server refuse one.
    """

    def __post_init__(self) -> None:
        if wrong := [name for name in self.overrides if name in _LAYOUT_FIELDS]:
            raise ValueError(
                f"overrides must not change {', '.join(wrong)}: the layout of the weights depends on them"
            )
        check_overrides(self.overrides, AlibiGPTConfig, "overrides.")
        if self.to != "mpt" and self.flavour != FLAVOURS[0]:
            raise ValueError(f"flavour applies to conversions to mpt, not to {self.to}")
        if self.to == OURS and self.context_length_tokens is not None:
            raise ValueError(f"context_length_tokens applies to conversions from {OURS}, not to it")


def convert(config: ConvertConfig) -> dict[str, Any]:
    """Convert a checkpoint to another family: weights, config and model card; tokenizer and license are copied.

    Tensors are read one by one and written file by file, so a checkpoint may be larger than memory. The source is
    checked before anything is written.

    Returns:
        ``output_dir``, the model type before (``converted_from``) and after (``model_type``), the names of the
        written ``files``, the source tensors that were ``left_out`` on purpose, and ``differs_in``, which maps each
        engine that computes something else to the fields that it ignores.

    Raises:
        ValueError: The source is missing or damaged or cannot be represented exactly, or the output folder is not
            empty.
    """
    target = Path(config.output_dir).resolve()
    require_empty(target)
    folder = find_folder(config.model, allow_pickle=config.allow_pickle)
    if config.to == GGUF:
        return _write_gguf(config, folder, target)
    model_type = read_mapping(folder / "config.json").get("model_type")
    translation = (_translate_in if config.to == OURS else _translate_out)(config, folder, model_type)
    dtype = DTYPES[config.dtype] if config.dtype else None
    source, plan = translation.plan(folder, allow_pickle=config.allow_pickle, dtype=dtype)
    target_config = translation.target_config
    target_config.dtype = dtype or plan.widest_dtype(source)
    companions, card = companion_files(folder), read_card(folder)
    differs_in = engines_that_differ(translation.ours) if config.flavour != FLAVOURS[0] else {}
    with atomic_directory(target) as tmp_path:
        write_weights(plan, source, tmp_path, dtype=dtype, max_shard_bytes=config.max_shard_bytes)
        target_config.save_pretrained(tmp_path)
        if config.flavour != FLAVOURS[0]:
            write_json(tmp_path / "config.json", llm_foundry_fields(target_config))
        copy_files(companions, folder, tmp_path)
        name_tokenizer_class(folder, tmp_path)
        keep_generation_settings(folder, tmp_path)
        if config.to == OURS:
            let_generate_follow(config.overrides, tmp_path)
        fields = _card_fields(config, model_type, plan.left_out, differs_in)
        save_card(tmp_path, card, tags=[translation.ours.position_method], **fields)
    return {
        "output_dir": config.output_dir,
        "converted_from": model_type,
        "model_type": config.to,
        "files": written_files(target),
        "left_out": plan.left_out,
        "differs_in": differs_in,
    }


def _card_fields(
    config: ConvertConfig, model_type: Any, left_out: Sequence[str], differs_in: Mapping[str, Any]
) -> dict[str, str]:
    """What the model card of a conversion says, apart from the text of the source's."""
    sentences = [f"{_source_name(config)} (`{model_type}`), converted to `{config.to}` by {PROGRAM}."]
    if left_out:
        sentences.append(f"Left out: {', '.join(left_out)}. Fine-tune it before use.")
    sentences += [f"Not for {engine}, which ignores {fields}." for engine, fields in differs_in.items()]
    usage, library_name = loading_code(config.to), "transformers"
    if "transformers" in differs_in:
        usage, library_name = "Load it with llm-foundry, or with an engine that reads its models.", "llm-foundry"
    return {"summary": " ".join(sentences), "usage": usage, "library_name": library_name, **_base_model(config)}


def _write_gguf(config: ConvertConfig, folder: Path, target: Path) -> dict[str, Any]:
    _refuse_ways_in(config)
    if config.max_shard_bytes != ConvertConfig.max_shard_bytes:
        raise ValueError("max_shard_bytes does not apply to gguf, which is one file")
    card, dtype = read_card(folder), config.dtype or "float32"
    with atomic_directory(target) as tmp_path:
        copy_licenses(folder, tmp_path)
        export_gguf(
            folder,
            tmp_path / "model.gguf",
            # The folder of a Hub snapshot is named after its commit.
            name=None if Path(config.model).is_dir() else config.model.rpartition("/")[2],
            dtype=dtype,
            context_length_tokens=config.context_length_tokens,
        )
        save_card(
            tmp_path,
            card,
            summary=f"{_source_name(config)}, converted to a GGUF file in {dtype} by {PROGRAM}.",
            usage=GGUF_USAGE,
            tags=["alibi", "gguf", "llama.cpp"],
            library_name="gguf",
            **_base_model(config),
        )
    named = {"output_dir": config.output_dir, "converted_from": OURS, "model_type": GGUF}
    return {**named, "files": written_files(target), "left_out": [], "differs_in": {}}


def _source_name(config: ConvertConfig) -> str:
    """A name on the Hub, or the name of a folder without its path, which is private."""
    return Path(config.model).resolve().name if Path(config.model).is_dir() else config.model


def _base_model(config: ConvertConfig) -> dict[str, str]:
    return {} if Path(config.model).is_dir() else {"base_model": config.model}


def find_folder(model: str, *, allow_pickle: bool = False) -> Path:
    """The folder of a checkpoint: a local folder, or a snapshot downloaded from the Hub or found in its cache.

    Raises:
        ValueError: There is no such folder, and no such model can be downloaded.
    """
    folder = Path(model)
    if not folder.is_dir():
        weights = WEIGHT_PATTERNS + (_PICKLE_PATTERNS if allow_pickle else ())
        try:
            folder = Path(snapshot_download(model, allow_patterns=["config.json", *COMPANION_FILES, *weights]))
        except (HFValidationError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{model}: no such folder, and it cannot be loaded from the Hub ({reason})") from error
    if not (folder / "config.json").is_file():
        raise ValueError(f"{model}: no model here, expected config.json and the weights")
    return folder


@dataclass(frozen=True, kw_only=True)
class _Translation:
    """Both configs of a conversion."""

    family: Family
    fields: Fields
    ours: AlibiGPTConfig
    target_config: PreTrainedConfig

    @property
    def to_ours(self) -> bool:
        return self.target_config is self.ours

    def plan(self, folder: Path, *, allow_pickle: bool, dtype: torch.dtype | None) -> tuple[SourceWeights, Plan]:
        """The weights of the source, and the plan of their conversion."""
        source_class, target_class = self.family.causal_lm, AlibiGPTForCausalLM
        if not self.to_ours:
            source_class, target_class = target_class, source_class
        source = SourceWeights(folder, source_class.base_model_prefix, allow_pickle=allow_pickle)
        # A conversion may exceed memory, but its config must not require far more than the weights that exist.
        if (total := num_parameters(self.ours)) > 2 * (num_held := source.num_parameters):
            needed, held = (format_bytes(FLOAT32_BYTES * count) for count in (total, num_held))
            raise ValueError(
                f"{folder}: config.json requires {total:,} parameters ({needed} in float32), but the weights have "
                f"{num_held:,} ({held})"
            )
        with torch.device("meta"):
            target = target_class(self.target_config)
        self.target_config.architectures = [target_class.__name__ if self.to_ours else self.family.architectures[0]]
        plan = plan_conversion(
            source,
            target,
            self.family.rules(self.ours, self.fields),
            to_ours=self.to_ours,
            tied=self.ours.tie_word_embeddings,
            dtype=dtype,
            ignored=self.family.ignored_tensors if self.to_ours else (),
        )
        return source, plan


def _translate_in(config: ConvertConfig, folder: Path, model_type: Any) -> _Translation:
    for name, family in FAMILIES.items():
        if model_type in (name, *family.other_model_types):
            break
    else:
        raise ValueError(f"{folder}: model_type is {model_type!r}, expected one of {', '.join(FAMILIES)}")
    try:
        fields = family.read_fields(folder)
        translated = family.to_alibi_gpt(fields, config.as_transformers)
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{folder}: config.json has a value of the wrong type ({error})") from error
    # Published MPTs turn off the cache, which their first code lacked; it changes only the speed of generation.
    try:
        ours = AlibiGPTConfig(**{**translated, "use_cache": True, **config.overrides})
    except (StrictDataclassError, ValueError) as error:
        raise ValueError(f"{folder}: config.json, with the overrides, gives no valid AlibiGPT ({error})") from error
    return _Translation(family=family, fields=fields, ours=ours, target_config=ours)


def _translate_out(config: ConvertConfig, folder: Path, model_type: Any) -> _Translation:
    if model_type != OURS:
        raise ValueError(f"{folder}: model_type is {model_type!r}, expected {OURS!r}; convert it to {OURS} first")
    _refuse_ways_in(config)
    family, ours = FAMILIES[config.to], load_model_config(folder)
    assert family.from_alibi_gpt is not None
    ours.train_context_length = config.context_length_tokens or ours.train_context_length
    target_config = family.from_alibi_gpt(ours, config.flavour == FLAVOURS[0])
    return _Translation(family=family, fields={}, ours=ours, target_config=target_config)


def _refuse_ways_in(config: ConvertConfig) -> None:
    for name in ("overrides", "as_transformers", "allow_pickle"):
        if getattr(config, name):
            raise ValueError(f"{name} applies to conversions to {OURS}, not to {config.to}")
