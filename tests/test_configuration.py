"""The configuration: derived values, what it refuses, and that it survives its JSON."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM, AlibiGPTForSequenceClassification
from tests.support.exact_cases import POSITION_CASES, SMALL


def test_derived_values() -> None:
    config = AlibiGPTConfig(hidden_size=96, num_attention_heads=6)
    assert (config.num_key_value_heads, config.head_dim, config.intermediate_size) == (6, 16, 384)
    assert config.scaling == 16**-0.5
    assert AlibiGPTConfig(attention_scale=0.5).scaling == 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hiden_size": 64}, "unknown field 'hiden_size'.*did you mean 'hidden_size'"),
        ({"alibi_betta": 2.0}, "did you mean 'alibi_beta'"),
        ({"n_head": 4}, "did you mean 'num_attention_heads'"),
        ({"max_position_embeddings": 2048}, "did you mean 'train_context_length'"),
        ({"frobnicate": 1}, "unknown field 'frobnicate' in AlibiGPTConfig; see its docstring"),
        ({"alibi_beta": 0.0}, "alibi_beta must be a finite number above 0, got 0.0"),
        ({"alibi_beta": -0.5}, "alibi_beta must be a finite number above 0"),
        ({"alibi_beta": float("nan")}, "alibi_beta must be a finite number above 0"),
        ({"alibi_beta": float("inf")}, "alibi_beta must be a finite number above 0"),
        ({"alibi_bias_max": 0}, "alibi_bias_max must be a finite number above 0"),
        ({"alibi_slopes": [1.0] * 12}, "alibi_slope_kind 'custom' require each other, got .* and 'geometric'"),
        ({"alibi_slope_kind": "custom"}, "alibi_slope_kind 'custom' require each other, got None"),
        ({"alibi_slope_kind": "custom", "alibi_slopes": [0.0] * 12}, "alibi_slopes: every custom slope must be"),
        ({"alibi_beta": [1.0, 2.0]}, "alibi_beta"),
        ({"alibi_slope_kind": "custom", "alibi_slopes": [1.0] * 3}, "expected 12 values, one per head, got 3"),
        ({"alibi_slope_kind": "linear"}, "alibi_slope_kind must be one of geometric, uniform, custom, got 'linear'"),
        ({"position_method": "rope", "alibi_beta": 2}, "alibi_beta would have no effect with position_method 'rope'"),
        ({"position_method": "none", "alibi_trainable": "beta"}, "alibi_trainable would have no effect"),
        ({"position_method": "t5", "alibi_scaling": {"type": "dynamic_ntk"}}, "alibi_scaling would have no effect"),
        ({"alibi_trainable": "all"}, "alibi_trainable must be one of none, beta, slopes"),
        ({"alibi_tolerance": 0.0}, "alibi_tolerance must be between 0 and 1"),
        ({"alibi_scaling": {"type": "yarn"}}, "alibi_scaling type must be one of"),
        ({"alibi_scaling": {"type": "linear"}}, "takes the keys"),
        ({"alibi_scaling": {"type": "dynamic_ntk", "factor": 2.0}}, "takes the keys"),
        ({"alibi_scaling": {"type": "linear", "factor": 0.5}}, "finite number of at least 1, got 0.5"),
        ({"alibi_scaling": {"type": "ntk", "factor": 2.0}, "alibi_slope_kind": "uniform"}, "two different slopes"),
        ({"position_method": "yarn"}, "position_method must be one of alibi"),
        ({"hidden_size": 100}, "hidden_size .100. must be a multiple of num_attention_heads .12."),
        ({"num_attention_heads": 0}, "must be a multiple of num_attention_heads .0."),
        ({"num_key_value_heads": 5}, "must be a multiple of num_key_value_heads .5."),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, got 0"),
        ({"hidden_size": 765, "num_attention_heads": 5, "position_method": "sinusoidal"}, "even hidden_size, got 765"),
        (
            {"position_method": "sinusoidal", "sinusoidal_amplitude": 0.0},
            "sinusoidal_amplitude must be",
        ),
        (
            {"position_method": "sinusoidal", "sinusoidal_amplitude": math.inf},
            "finite number above 0 or null, got inf",
        ),
        ({"hidden_size": 60, "position_method": "rope"}, "even head_dim, got 5"),
        ({"position_method": "rope", "rope_theta": 1.0}, "rope_theta must be a finite number above 1, got 1.0"),
        (
            {"position_method": "rope", "rope_extension": {"type": "dynamic"}},
            "must be one of linear, ntk, dynamic_ntk",
        ),
        ({"position_method": "rope", "rope_extension": {"type": "yarn"}}, "takes the keys .'factor', 'type'.*got"),
        ({"position_method": "rope", "rope_extension": {"type": "linear", "factor": 0.5}}, "of at least 1, got 0.5"),
        ({"position_method": "rope", "rope_extension": {"type": "linear", "factor": 2.0, "low": 1}}, "takes the keys"),
        (
            {"position_method": "rope", "rope_extension": {"type": "yarn", "factor": 2.0, "beta_slow": 40}},
            "beta_fast must be above beta_slow",
        ),
        (
            {"position_method": "rope", "head_dim": 2, "rope_extension": {"type": "ntk", "factor": 2.0}},
            "needs a head_dim of at least 4, got 2",
        ),
        ({"position_method": "t5", "t5_num_buckets": 7}, "t5_num_buckets must be even and at least 2, got 7"),
        ({"position_method": "t5", "t5_max_distance": 16}, "t5_max_distance must be above .* 16, got 16"),
        ({"position_method": "kerple", "kerple_variant": "linear"}, "kerple_variant must be one of log, power"),
        ({"position_method": "fire", "fire_hidden_size": 0}, "fire_hidden_size must be at least 1, got 0"),
        ({"position_method": "fire", "fire_threshold": 0.0}, "fire_threshold must be a finite number above 0"),
        ({"position_method": "sandwich", "sandwich_dim": 3}, "sandwich_dim must be even and at least 2, got 3"),
        ({"rope_parameters": {}}, "did you mean 'rope_extension'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "did you mean 'rope_extension'"),
        ({"attention_dropout": 1.0}, "attention_dropout must be in"),
        ({"clip_qkv": 0.0}, "clip_qkv must be a finite number above 0"),
        ({"attention_scale": math.inf}, "attention_scale must be a finite number above 0 or null, got inf"),
        ({"initializer_range": math.nan}, "initializer_range must be a finite number of at least 0, got nan"),
        ({"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon must be a finite number of at least 0"),
        ({"rope_theta": 0}, "rope_theta must be a finite number above 1, got 0"),
        ({"rope_theta": -10000.0}, "rope_theta must be a finite number above 1, got -10000.0"),
        ({"rope_theta": math.nan, "position_method": "rope"}, "rope_theta must be a finite number above 1, got nan"),
        ({"hidden_act": "gelo"}, "hidden_act 'gelo' is unknown to transformers; did you mean 'gelu'"),
        ({"hidden_act": "zzz"}, "hidden_act 'zzz' is unknown to transformers; expected one of: .*relu"),
        ({"position_method": "t5", "t5_max_distance": 10**12}, "t5_max_distance must be at most 1048576"),
        ({"position_method": "sandwich", "sandwich_dim": 10**12}, "sandwich_dim must be at most 65536"),
        ({"hidden_size": "768"}, "hidden_size"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        AlibiGPTConfig(**fields)


def test_json_round_trip(tmp_path) -> None:
    config = AlibiGPTConfig(
        num_attention_heads=3,
        hidden_size=48,
        alibi_beta=0.3,
        alibi_slope_kind="custom",
        alibi_slopes=[0.1, 1, 2.5],
        alibi_scaling={"type": "ntk", "factor": 4.0},
        rope_extension={"type": "yarn", "factor": 4.0, "beta_slow": 2},
        id2label={0: "a", 1: "b", 2: "c"},
    )
    config.save_pretrained(tmp_path)
    loaded = AlibiGPTConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == {**config.to_dict(), "transformers_version": loaded.transformers_version}


@pytest.mark.parametrize("case", ["alibi", "alibi_ntk", "rope_yarn"])
@pytest.mark.filterwarnings("error")
def test_trainer_can_read_the_version_of_a_checkpoint(case: str, tmp_path) -> None:
    """Where a training resumes, Trainer opens the config as if it were of no particular model."""
    AlibiGPTConfig(**SMALL | POSITION_CASES[case]).save_pretrained(tmp_path)
    assert PreTrainedConfig.from_json_file(tmp_path / "config.json").transformers_version


def test_there_is_no_longest_length() -> None:
    config = AlibiGPTConfig()
    assert not any(hasattr(config, name) for name in ("max_position_embeddings", "n_positions", "n_ctx"))


def test_fields_can_be_overridden_when_loading(tmp_path) -> None:
    AlibiGPTConfig().save_pretrained(tmp_path)
    assert AlibiGPTConfig.from_pretrained(tmp_path, alibi_beta=2.0).alibi_beta == 2.0


def test_what_other_programs_leave_in_a_saved_config_is_kept(tmp_path) -> None:
    saved = AlibiGPTConfig(alibi_beta=0.5)
    saved.written_by = "another program"
    saved.save_pretrained(tmp_path)
    loaded, unused = AlibiGPTConfig.from_pretrained(tmp_path, alibi_beta=2.0, nothing=1, return_unused_kwargs=True)
    assert (loaded.written_by, loaded.alibi_beta, unused) == ("another program", 2.0, {"nothing": 1})


@pytest.mark.parametrize("key", ["alibi_betta", "n_head", "max_position_embeddings"])
def test_a_saved_key_that_reads_like_ours_is_refused(key: str, tmp_path) -> None:
    saved = AlibiGPTConfig()
    setattr(saved, key, 2)
    saved.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"unknown field '{key}'.*did you mean"):
        AlibiGPTConfig.from_pretrained(tmp_path)


def test_fields_at_their_defaults_go_with_every_method() -> None:
    config = AlibiGPTConfig(position_method="rope", alibi_beta=1, alibi_bias_max=8, alibi_trainable="none")
    assert AlibiGPTConfig(**config.to_dict()).position_method == "rope"


def test_a_saved_field_that_the_method_does_not_read_is_reported_and_left_out(tmp_path, caplog) -> None:
    """Folders of before it was refused still load."""
    AlibiGPTConfig(alibi_beta=2.0).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"position_method": "alibi"', '"position_method": "rope"'))
    logging.get_logger("transformers").addHandler(caplog.handler)
    loaded = AlibiGPTConfig.from_pretrained(tmp_path)
    logging.get_logger("transformers").removeHandler(caplog.handler)
    assert (loaded.position_method, loaded.alibi_beta) == ("rope", 1.0)
    assert "ignoring 'alibi_beta' in the config: position_method 'rope' does not use it" in caplog.text
    assert AlibiGPTConfig.from_pretrained(tmp_path, position_method="alibi").alibi_beta == 2.0
    with pytest.raises((ValueError, StrictDataclassError), match="alibi_beta would have no effect"):
        AlibiGPTConfig.from_pretrained(tmp_path, alibi_beta=4.0)


def test_another_method_chosen_while_loading_leaves_the_fields_of_alibi_behind(tmp_path) -> None:
    AlibiGPTConfig(alibi_slope_kind="uniform", alibi_trainable="slopes").save_pretrained(tmp_path)
    loaded = AlibiGPTConfig.from_pretrained(tmp_path, position_method="none")
    assert (loaded.alibi_slope_kind, loaded.alibi_trainable) == ("geometric", "none")


def test_a_field_that_loaded_weights_replace_is_refused(tmp_path: Path) -> None:
    fields = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    AlibiGPTForCausalLM(AlibiGPTConfig(alibi_trainable="beta", **fields)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^alibi_beta has no effect: .* as weights \(alibi_trainable beta\)"):
        AlibiGPTForCausalLM.from_pretrained(tmp_path, alibi_beta=5.0)
    assert AlibiGPTForCausalLM.from_pretrained(tmp_path, alibi_bias_max=4.0).config.alibi_bias_max == 4.0
    # Without the weights, the field has an effect.
    config = AlibiGPTConfig.from_pretrained(tmp_path, alibi_beta=5.0)
    assert AlibiGPTForCausalLM(config).model.position_method.layer_slopes(0)[0].item() == pytest.approx(5 * 2**-4)
    assert AlibiGPTForCausalLM.from_pretrained(tmp_path, alibi_beta=5.0, alibi_trainable="slopes")


@pytest.mark.parametrize(
    ("learned", "field", "value", "message"),
    [
        ("beta", "alibi_trainable", "none", "'none' would reset what the checkpoint learned with 'beta'"),
        ("beta", "alibi_trainable", "slopes", "'slopes' would reset what the checkpoint learned with 'beta'"),
        ("slopes", "alibi_trainable", "beta", "'beta' would reset what the checkpoint learned with 'slopes'"),
        ("beta", "alibi_beta", 3.0, "alibi_beta has no effect: the checkpoint stores it as weights"),
        ("slopes", "alibi_bias_max", 4.0, "alibi_bias_max has no effect: the checkpoint stores it as weights"),
    ],
)
@pytest.mark.parametrize("head", [AlibiGPTForCausalLM, AlibiGPTForSequenceClassification])
def test_a_config_that_was_changed_does_not_reset_what_was_learned(
    learned: str, field: str, value: object, message: str, head: type, tmp_path: Path
) -> None:
    sizes = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    AlibiGPTForCausalLM(AlibiGPTConfig(alibi_trainable=learned, **sizes)).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    head.from_pretrained(tmp_path, config=config)
    setattr(config, field, value)
    with pytest.raises(ValueError, match=message):
        head.from_pretrained(tmp_path, config=config)
    config.save_pretrained(tmp_path / "config")  # writes none of what loading remembers
    assert not any(key.startswith("_") for key in json.loads((tmp_path / "config" / "config.json").read_text()))


def test_a_config_that_says_where_to_start_may_drop_what_was_learned(tmp_path: Path) -> None:
    sizes = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    AlibiGPTForCausalLM(AlibiGPTConfig(alibi_trainable="beta", **sizes)).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.alibi_trainable, config.alibi_beta = "none", 2.0
    slopes = AlibiGPTForCausalLM.from_pretrained(tmp_path, config=config).model.position_method.layer_slopes(0)
    assert slopes.tolist() == [2 * 2**-4, 2 * 2**-8]
    AlibiGPTForCausalLM.from_pretrained(tmp_path, config=AlibiGPTConfig(position_method="rope", **sizes))
    with pytest.raises(ValueError, match="'none' would reset what the checkpoint learned"):
        AlibiGPTForCausalLM.from_pretrained(tmp_path, config=AlibiGPTConfig(**sizes))


@pytest.mark.parametrize("model_class", [AlibiGPTForCausalLM, AlibiGPTForSequenceClassification])
def test_a_saved_model_is_loaded_with_the_config_it_was_saved_with(model_class: type, tmp_path: Path) -> None:
    sizes = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    AlibiGPTForCausalLM(AlibiGPTConfig(**sizes)).save_pretrained(tmp_path / "fixed")
    config = AutoConfig.from_pretrained(tmp_path / "fixed")
    config.alibi_trainable, config.alibi_beta = "beta", 2.0
    model = AlibiGPTForCausalLM.from_pretrained(tmp_path / "fixed", config=config)
    model.save_pretrained(tmp_path / "learned")
    again = model_class.from_pretrained(tmp_path / "learned", config=model.config)
    assert again.model.position_method.bias_log_beta.exp().tolist() == pytest.approx([2.0])


def test_what_is_overridden_while_loading_is_checked(tmp_path) -> None:
    AlibiGPTConfig().save_pretrained(tmp_path)
    with pytest.raises((ValueError, StrictDataclassError), match="alibi_beta must be a finite number"):
        AlibiGPTConfig.from_pretrained(tmp_path, alibi_beta=-1.0)


def test_every_config_has_an_auto_map_which_is_written_only_where_it_names_something(tmp_path) -> None:
    """TRL reads the attribute unguarded, transformers looks for a name in it, and no config may share it."""
    config = AlibiGPTConfig()
    assert config.auto_map == {} == AlibiGPTConfig(auto_map=None).auto_map
    assert config.auto_map is not AlibiGPTConfig().auto_map
    config.save_pretrained(tmp_path)
    for written in (config.to_dict(), config.to_diff_dict(), json.loads((tmp_path / "config.json").read_text())):
        assert "auto_map" not in written
    assert AutoConfig.from_pretrained(tmp_path).auto_map == {}
    named = {"AutoConfig": "configuration_alibi_gpt.AlibiGPTConfig"}
    assert AlibiGPTConfig(auto_map=named).to_diff_dict()["auto_map"] == named


def test_a_config_registered_as_remote_code_names_its_class(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(AlibiGPTConfig, "_auto_class", "AutoConfig")
    AlibiGPTConfig().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert written == {"AutoConfig": "configuration_alibi_gpt.AlibiGPTConfig"}


@pytest.mark.parametrize("key", ["alibi_betta", "n_head", "max_position_embeddings"])
def test_a_misspelled_setting_on_loading_is_refused(key: str, tmp_path: Path) -> None:
    AlibiGPTConfig().save_pretrained(tmp_path)
    for load in (AlibiGPTConfig.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ValueError, match=f"unknown field '{key}' in AlibiGPTConfig"):
            load(tmp_path, **{key: 2})
        assert load(tmp_path, alibi_beta=2.0, trust_remote_code=False).alibi_beta == 2.0


def test_what_was_learned_is_not_reset_on_loading(tmp_path: Path) -> None:
    AlibiGPTConfig(alibi_trainable="beta").save_pretrained(tmp_path)
    for trainable in ("none", "slopes"):
        with pytest.raises(ValueError, match=f"alibi_trainable '{trainable}' would reset what the checkpoint learned"):
            AlibiGPTConfig.from_pretrained(tmp_path, alibi_trainable=trainable)
    anew = {"alibi_trainable": "slopes", "alibi_beta": 2.0}
    assert AlibiGPTConfig.from_pretrained(tmp_path, **anew).alibi_trainable == "slopes"
    assert AlibiGPTConfig.from_pretrained(tmp_path, alibi_trainable="beta").alibi_trainable == "beta"
    assert AlibiGPTConfig.from_pretrained(tmp_path, position_method="rope").position_method == "rope"


def test_every_linear_layer_and_embedding_starts_with_the_range_of_the_config() -> None:
    shape = {"vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 8, "num_attention_heads": 4}
    model = AlibiGPTForCausalLM(AlibiGPTConfig(**shape, initializer_range=0.03))
    matrices = {name: weight for name, weight in model.named_parameters() if weight.ndim == 2}
    assert len(matrices) >= 8 * 6 + 1
    for name, weight in matrices.items():
        # Of at least 128 x 128 draws: four standard errors are 2.2 %.
        assert weight.std().item() == pytest.approx(0.03, rel=0.03), name
