"""The two architectures of configs/model that convert: train with them, and other programs run the model."""

import json
from pathlib import Path

import pytest

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.checkpoints.convert.conversion import ConvertConfig, convert
from modeling_alibi_gpt.checkpoints.convert.mpt import engines_that_differ
from tests.support.conversion_cases import (
    TOKENS,
    TOLERANCE,
    VOCAB_SIZE,
    WIDTH,
    largest_difference,
    loaded,
    random_weights,
)


MODELS = Path(__file__).parents[3] / "configs" / "model"
SIZES = {"vocab_size": VOCAB_SIZE, "hidden_size": WIDTH, "num_hidden_layers": 2}


def config_of(family: str, **fields: object) -> AlibiGPTConfig:
    written = json.loads((MODELS / f"servable_{family}.json").read_text(encoding="utf-8"))
    assert written.pop("model_type") == "alibi_gpt"
    return AlibiGPTConfig(**{**written, **fields})


@pytest.mark.parametrize(
    ("family", "flavour"), [("mpt", "transformers"), ("mpt", "llm-foundry"), ("bloom", "transformers")]
)
def test_a_model_of_this_architecture_converts(family: str, flavour: str, tmp_path: Path) -> None:
    ours = random_weights(AlibiGPTForCausalLM(config_of(family, **SIZES)))
    ours.save_pretrained(tmp_path / "ours")
    options = {"model": str(tmp_path / "ours"), "output_dir": str(tmp_path / "out"), "to": family}
    convert(ConvertConfig(**options, flavour=flavour))
    theirs = loaded(tmp_path / "out")
    assert theirs.config.model_type == family
    for padded in (False, True):
        assert largest_difference(theirs, ours, padded=padded) < TOLERANCE


@pytest.mark.parametrize(("family", "field"), [("mpt", "max_seq_len"), ("bloom", "seq_length")])
def test_the_longest_text_of_other_programs_is_a_setting(family: str, field: str, tmp_path: Path) -> None:
    """MPT in transformers reads no text beyond ``max_seq_len``, ALiBi or not."""
    ours = random_weights(AlibiGPTForCausalLM(config_of(family, **SIZES, train_context_length=TOKENS // 2)))
    ours.save_pretrained(tmp_path / "ours")
    options = {"model": str(tmp_path / "ours"), "to": family}
    for length, name in ((None, "short"), (TOKENS, "long")):
        convert(ConvertConfig(**options, output_dir=str(tmp_path / name), context_length_tokens=length))
    short, long = loaded(tmp_path / "short"), loaded(tmp_path / "long")
    assert (getattr(short.config, field), getattr(long.config, field)) == (TOKENS // 2, TOKENS)
    assert largest_difference(long, ours, padded=False) < TOLERANCE
    if family == "mpt":
        with pytest.raises(RuntimeError):
            largest_difference(short, ours, padded=False)
    with pytest.raises(ValueError, match="context_length_tokens applies to conversions from alibi_gpt, not to it"):
        ConvertConfig(model="model", output_dir="out", context_length_tokens=8)


def test_every_engine_runs_the_mpt() -> None:
    assert engines_that_differ(config_of("mpt")) == {}


def test_llama_cpps_quants_take_their_rows() -> None:
    for family in ("mpt", "bloom"):
        config = config_of(family)
        assert config.hidden_size % 256 == 0 and config.intermediate_size % 256 == 0


@pytest.mark.parametrize("family", ["mpt", "bloom"])
def test_a_refusal_names_the_architecture_to_train_with(family: str, tmp_path: Path) -> None:
    config = AlibiGPTConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    AlibiGPTForCausalLM(config).save_pretrained(tmp_path / "ours")
    message = f"a model trained with configs/model/servable_{family}.json can be converted"
    with pytest.raises(ValueError, match=message):
        convert(ConvertConfig(model=str(tmp_path / "ours"), output_dir=str(tmp_path / "out"), to=family))
