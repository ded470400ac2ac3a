# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Configuration of AlibiGPT: typed fields, derived values and validation. Exported to the Hub."""

import dataclasses
import difflib
import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging

from .alibi import alibi_slopes
from .configuration_keys import foreign_keys, refuse_misspelled, refuse_unknown_keys
from .position_alibi import check_stays_learned, slope_fields
from .position_methods import POSITION_METHODS, plugin_fields, plugin_of


logger = logging.get_logger(__name__)


@strict
class AlibiGPTConfig(PreTrainedConfig):
    r"""
    Configuration of a GPT-style decoder whose position information is ALiBi (Press et al. 2022, arXiv:2108.12409).

    There is no `max_position_embeddings`: ALiBi has no maximum length, and libraries would treat the field as one.
    An unknown keyword raises an error, so a misspelled field is never ignored.

    Args:
        vocab_size (`int`): Vocabulary size V, in tokens.
        hidden_size (`int`): Width of the residual stream.
        num_hidden_layers (`int`): Number of decoder layers.
        num_attention_heads (`int`): Number H of query heads.
        num_key_value_heads (`int`, *optional*): Number of key and value heads; fewer than H give grouped-query
            attention. Defaults to H.
        head_dim (`int`, *optional*): Width d of a head. Defaults to `hidden_size // num_attention_heads`.
        intermediate_size (`int`, *optional*): Width of the MLP. Defaults to `4 * hidden_size`.
        hidden_act (`str`): Activation of the MLP.
        layer_norm_epsilon (`float`): Epsilon of every norm.
        use_bias (`bool`): Use biases in linear layers and LayerNorms.
        embedding_layer_norm (`bool`): Apply a LayerNorm to the embeddings, including added positions, as in BLOOM.
        qk_norm (`bool`): Apply an RMSNorm over `head_dim` to queries and keys.
        clip_qkv (`float`, *optional*): Clip projected queries, keys and values to this magnitude, as in MPT.
        attention_scale (`float`, *optional*): Factor of `q . k`. Defaults to `head_dim ** -0.5`.
        tie_word_embeddings (`bool`): Share the weight of the embedding with the output layer.
        initializer_range (`float`): Standard deviation of the initial weights of embeddings and linear layers, as in
            BLOOM. GPT-2 starts the layers that write to the residual stream with smaller ones.
        embd_pdrop, resid_pdrop, attention_dropout (`float`): Dropout probabilities.
        classifier_dropout (`float`): Dropout of the token classification head.
        train_context_length (`int`): Longest sequence seen in training, in tokens. Only `learned` positions are
            limited to it; `shared_offset`, `fire`, `rope_extension` and dynamic `alibi_scaling` also use it.
        position_method (`str`): `alibi`, a baseline, or a method registered with `register_position_method`, which
            may add fields of its own.
        position_plugin (`str`, *optional*): Module that registers `position_method`, if it is not built in. The
            config sets this field. Loading a config never imports the module.
        sinusoidal_amplitude (`float`, *optional*): Amplitude of `sinusoidal`. Defaults to `initializer_range`.
        rope_theta (`float`): Base of the frequencies of `rope`.
        rope_extension (`dict`, *optional*): Extends `rope` beyond the training length: `{"type": "linear" | "ntk" |
            "yarn", "factor": f}`, or `{"type": "dynamic_ntk"}` with an optional factor of 1. YaRN also takes
            `beta_fast` (32), `beta_slow` (1) and `attention_factor` (`0.1 ln(f) + 1`). The name is not
            `rope_scaling` because transformers 5 would convert that field when it loads a saved config.
        t5_num_buckets (`int`): Number of distance buckets of `t5`; buckets in the first half are one token wide.
        t5_max_distance (`int`): Distance in tokens beyond which all keys share the last bucket of `t5`.
        kerple_variant (`str`): Kernel of `kerple`: `log` or `power`.
        fire_hidden_size (`int`): Hidden units of the MLP of `fire`.
        fire_threshold (`float`, *optional*): Initial value of the learned threshold L of `fire`, in tokens. Defaults
            to `train_context_length / 4`, the paper's 512 for 2048.
        fire_shared_by_layers (`bool`): Share one function among all layers of `fire`, as in the paper's FIRE-S.
        sandwich_dim (`int`): Dimension of the sinusoidal embeddings that define `sandwich`.
        alibi_beta (`float`): Scalar beta that multiplies every slope. The paper uses 1.
        alibi_slope_kind (`str`): `geometric`, `uniform` (the same slope for all heads) or `custom`.
        alibi_slopes (`list[float]`, *optional*): The H values of m_h for `custom`.
        alibi_bias_max (`float`): Range of the geometric exponents. The paper uses 8.
        alibi_bias_inside_scaling (`bool`): Multiply the bias by the attention scale together with the scores,
            `(q . k - s (i - j)) / sqrt(d)`, as Falcon does. The paper, BLOOM and MPT add the bias after scaling.
        alibi_trainable (`str`): What is trained: `none`, `beta` (one per layer) or `slopes` (one per layer and head).
        alibi_scaling (`dict`, *optional*): Reduces slopes beyond the training length: `{"type": "linear" | "ntk",
            "factor": f}` or `{"type": "dynamic_linear" | "dynamic_ntk"}`. The dynamic factor of a query is the number
            of tokens up to and including it divided by `train_context_length`, at least 1.
        alibi_tolerance (`float`): Largest total attention weight that the banded back end may leave out per query.
        use_cache (`bool`): Return keys and values for decoding.

    Example:

    ```python
    >>> from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
    >>> model = AlibiGPTForCausalLM(AlibiGPTConfig(hidden_size=192, num_hidden_layers=4, num_attention_heads=6))
    ```
    """

    model_type = "alibi_gpt"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]
    base_model_tp_plan = {
        "position_method": "alibi_gpt_heads",
        "layers.*.self_attn": "alibi_gpt_heads",
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 50257
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    layer_norm_epsilon: float = 1e-5
    use_bias: bool = True
    embedding_layer_norm: bool = False
    qk_norm: bool = False
    clip_qkv: float | int | None = None
    attention_scale: float | int | None = None
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    embd_pdrop: float | int = 0.0
    resid_pdrop: float | int = 0.0
    attention_dropout: float | int = 0.0
    classifier_dropout: float | int = 0.1

    train_context_length: int = 1024
    position_method: str = "alibi"
    position_plugin: str | None = None
    sinusoidal_amplitude: float | int | None = None
    rope_theta: float | int = 10000.0
    rope_extension: dict[str, Any] | None = None
    t5_num_buckets: int = 32
    t5_max_distance: int = 128
    kerple_variant: str = "log"
    fire_hidden_size: int = 32
    fire_threshold: float | int | None = None
    fire_shared_by_layers: bool = False
    sandwich_dim: int = 128
    alibi_beta: float | int = 1.0
    alibi_slope_kind: str = "geometric"
    alibi_slopes: list[float | int] | None = None
    alibi_bias_max: float | int = 8.0
    alibi_bias_inside_scaling: bool = False
    alibi_trainable: str = "none"
    alibi_scaling: dict[str, Any] | None = None
    alibi_tolerance: float = 1e-6

    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        own_fields = plugin_fields(self.position_method, self.position_plugin, type(self))
        self.position_plugin = plugin_of(self.position_method)
        refuse_unknown_keys(kwargs, [*self.__dataclass_fields__, *own_fields])
        super().__post_init__(**{**own_fields, **kwargs})
        if getattr(self, "auto_map", None) is None:
            self.auto_map = {}  # TRL and transformers expect it in every config
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                    f"({self.num_attention_heads}) unless head_dim is set"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size

    @property
    def scaling(self) -> float:
        """Factor of ``q . k``: ``attention_scale``, or ``1 / sqrt(head_dim)``."""
        return self.head_dim**-0.5 if self.attention_scale is None else float(self.attention_scale)

    def base_alibi_slopes(self):
        """Slopes ``(H,)`` float32 of this config, before training and before ``alibi_scaling``.

        Raises:
            ValueError: An ``alibi_*`` field is out of range.
        """
        return alibi_slopes(
            self.num_attention_heads,
            beta=self.alibi_beta,
            kind=self.alibi_slope_kind,
            bias_max=self.alibi_bias_max,
            custom=self.alibi_slopes,
        )

    def validate_sizes(self):
        """Check that sizes are positive, heads divide evenly and dropout probabilities are in range."""
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                     "head_dim", "intermediate_size", "train_context_length"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads})"
            )
        for name in ("embd_pdrop", "resid_pdrop", "attention_dropout", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def validate_numbers(self):
        """Check that all other numbers are finite and in range and that the activation exists."""
        for name in ("clip_qkv", "attention_scale"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number above 0 or null, got {getattr(self, name)}")
        for name in ("initializer_range", "layer_norm_epsilon"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number of at least 0, got {getattr(self, name)}")
        if not 1 < self.rope_theta < math.inf:
            raise ValueError(f"rope_theta must be a finite number above 1, got {self.rope_theta}")
        if self.hidden_act not in ACT2FN:
            close = difflib.get_close_matches(self.hidden_act, ACT2FN, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"expected one of: {', '.join(sorted(ACT2FN))}"
            raise ValueError(f"hidden_act {self.hidden_act!r} is unknown to transformers; {hint}")

    def validate_position_method(self):
        """Check that the position method exists and supports this config."""
        if self.position_method not in POSITION_METHODS:
            raise ValueError(
                f"position_method must be one of {', '.join(POSITION_METHODS)}, got {self.position_method!r}"
            )
        POSITION_METHODS[self.position_method].check_config(self)

    def validate_unread_fields(self):
        """Check that ``alibi_*`` fields have their defaults if the position method does not use them."""
        if unread := self._unread_alibi_fields(vars(self), self.position_method):
            raise ValueError(
                f"{', '.join(unread)} would have no effect with position_method {self.position_method!r}: "
                f"remove the setting, or set position_method to 'alibi'"
            )

    def save_pretrained(self, save_directory, **kwargs):
        """Save the config, without an ``auto_map`` unless the code files are saved too, as for remote code."""
        if self._auto_class is None:
            self.auto_map = {}
        super().save_pretrained(save_directory, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, without an empty ``auto_map``."""
        fields = super().to_dict()
        if not fields.get("auto_map"):
            fields.pop("auto_map", None)
        return fields

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Load a saved config. Unknown keys of other programs are kept, with a warning.

        Unknown keys that look like AlibiGPT fields, such as `alibi_betta` or `n_head`, raise ValueError. ALiBi fields
        that the position method (of the file, or set by `kwargs`) does not use are dropped, with a warning.
        """
        method = kwargs.get("position_method", config_dict.get("position_method", cls.position_method))
        own_fields = plugin_fields(method, config_dict.get("position_plugin"), cls)
        foreign = foreign_keys(config_dict, [*cls.__dataclass_fields__, *own_fields])
        # The other fields are validated against the position method.
        known = {key: value for key, value in config_dict.items() if key not in foreign} | {"position_method": method}
        for key in cls._unread_alibi_fields(known, method):
            logger.warning_once(f"ignoring '{key}' in the config: position_method '{method}' does not use it")
            del known[key]
        config, unused = super().from_dict(known, **{**kwargs, "return_unused_kwargs": True})
        for key, value in foreign.items():
            logger.warning_once(f"the config contains '{key}', which AlibiGPT does not use")
            setattr(config, key, value)
        saved = known.get("alibi_trainable", "none")
        check_stays_learned(saved, config.alibi_trainable, kwargs)
        config._learns_from_here, config._set_on_loading = saved != config.alibi_trainable, tuple(kwargs)
        config._as_loaded = slope_fields(config)
        config.validate()  # kwargs are assigned field by field, which checks only types
        if not (returns_unused := kwargs.get("return_unused_kwargs", False)):
            refuse_misspelled(unused, [*cls.__dataclass_fields__, *own_fields])
        return (config, unused) if returns_unused else config

    def _remove_keys_not_serialized(self, d: dict[str, Any]) -> None:
        super()._remove_keys_not_serialized(d)
        for name in ("_learns_from_here", "_set_on_loading", "_as_loaded"):
            d.pop(name, None)

    @classmethod
    def _unread_alibi_fields(cls, values: dict[str, Any], position_method: str) -> list[str]:
        """ALiBi fields with a non-default value although the position method does not use them."""
        method = POSITION_METHODS.get(position_method)
        if method is None or method.reads_alibi_fields:
            return []
        fields = (field for field in dataclasses.fields(cls) if field.name.startswith("alibi_"))
        return [field.name for field in fields if values.get(field.name, field.default) != field.default]


__all__ = ["AlibiGPTConfig"]
