# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""AlibiGPT: a pre-LayerNorm GPT-style decoder with a configurable position method. Exported to the Hub.

Shapes: B batch, H query heads, Q queries, K keys, D hidden size, d head size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, TokenClassifierOutput
from transformers.modeling_utils import slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import auto_docstring, can_return_tuple
from transformers.utils.generic import TransformersKwargs, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import ALL_ATTENTION_FUNCTIONS, LayerMask, attention_backend
from .attention_context import attention_context
from .attention_inputs import ForwardInputs, attention_dtype
from .cache_argument import CACHE_DOCS, CACHE_NAME, one_cache
from .chunked_loss import LOSS_CHUNK_DOCS, chunked_causal_lm_loss
from .configuration_alibi_gpt import AlibiGPTConfig
from .continuous_batching import ContinuousBatching
from .position_alibi import missing_weights, refuse_changed_config, refuse_dropped_weights, slope_fields
from .position_base import LayerBias, PositionMethod
from .position_methods import POSITION_METHODS
from .tensor_parallel import AlibiGPTHeadRMSNorm
from .tied_sharding import TiedSharding


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Reference attention. In float64 it is the standard against which the other back ends are tested.

    Args:
        module: The attention layer.
        query: ``(B, H, Q, d)``.
        key: ``(B, H_kv, K, d)``, like ``value``.
        value: ``(B, H_kv, K, d)``.
        attention_mask: Additive ``(B, H or 1, Q, K)``, or bool, True where a query sees a key.
        scaling: Factor of ``q . k``.
        dropout: Dropout probability.
        **kwargs: Ignored arguments of other back ends.

    Returns:
        Output ``(B, Q, H, d)`` and weights ``(B, H, Q, K)``.
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling  # (B, H, Q, K)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    output = torch.matmul(weights, value).transpose(1, 2).contiguous()
    return output, weights


# transformers 5.23's own function would add the keys to the paged cache again; the layer already does.
ALL_ATTENTION_FUNCTIONS["paged|eager"] = eager_attention_forward


class AlibiGPTAttention(nn.Module):
    """Causal multi-head attention, or grouped-query attention if ``num_key_value_heads`` is below H."""

    def __init__(self, config: AlibiGPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.scaling
        self.is_causal = True

        query_size = config.num_attention_heads * config.head_dim
        key_value_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.use_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.use_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.use_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.use_bias)
        if config.qk_norm:
            self.q_norm = AlibiGPTHeadRMSNorm(config.head_dim, eps=config.layer_norm_epsilon)
            self.k_norm = AlibiGPTHeadRMSNorm(config.head_dim, eps=config.layer_norm_epsilon)

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(B, H, Q, d)``, keys and values ``(B, H_kv, Q, d)``, clipped and normalized, before rotation."""
        query, key, value = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
        if (limit := self.config.clip_qkv) is not None:
            query, key, value = (states.clamp(min=-limit, max=limit) for states in (query, key, value))
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = query.view(shape), key.view(shape), value.view(shape)
        if self.config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: LayerMask,
        position_ids: Tensor,
        position_method: PositionMethod,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        query, key, value = self.project(hidden_states)
        query, key = position_method.rotate(query, key, position_ids)
        query, key, value = (states.to(attention_dtype(states)) for states in (query, key, value))
        cache = kwargs.pop(CACHE_NAME, None)
        if cache is not None:
            # A paged cache finds in the arguments where the keys of each request are.
            key, value = cache.update(key, value, self.layer_idx, kwargs=kwargs)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            position_ids=position_ids,
            **kwargs,
        )
        output = output.reshape(*hidden_states.shape[:-1], -1).contiguous()
        return self.o_proj(output), weights


class AlibiGPTMLP(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, config: AlibiGPTConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.use_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.use_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class AlibiGPTDecoderLayer(GradientCheckpointingLayer):
    """Attention and MLP, each after a LayerNorm and inside a residual connection."""

    def __init__(self, config: AlibiGPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon, bias=config.use_bias)
        self.self_attn = AlibiGPTAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(
            config.hidden_size, eps=config.layer_norm_epsilon, bias=config.use_bias
        )
        self.mlp = AlibiGPTMLP(config)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: LayerMask,
        position_ids: Tensor,
        position_method: PositionMethod,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_ids=position_ids,
            position_method=position_method,
            **kwargs,
        )
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))


@auto_docstring(
    custom_intro="Base class of all AlibiGPT models: weight initialization and the flags that transformers reads."
)
class AlibiGPTPreTrainedModel(PreTrainedModel):
    config: AlibiGPTConfig
    config_class = AlibiGPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["AlibiGPTDecoderLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values", "position_method"]
    _supports_sdpa = True
    # Of the FlashAttention versions, only 2 supports slopes; `attention_backend` rejects the others.
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_context_parallel = False
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": AlibiGPTDecoderLayer, "attentions": AlibiGPTAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PositionMethod):
            module.init_weights()

    def _adjust_missing_and_unexpected_keys(self, loading_info) -> None:
        super()._adjust_missing_and_unexpected_keys(loading_info)
        loading_info.missing_keys = missing_weights(self.config, loading_info.missing_keys)
        if POSITION_METHODS[self.config.position_method].reads_alibi_fields:
            refuse_dropped_weights(self.config, loading_info.unexpected_keys)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        refuse_changed_config(self.config, self.modules())
        super().save_pretrained(*args, **kwargs)
        self.config._as_loaded = slope_fields(self.config)  # which load the folder, too


@auto_docstring(custom_intro="The decoder without a head, which returns hidden states.")
class AlibiGPTModel(AlibiGPTPreTrainedModel):
    def __init__(self, config: AlibiGPTConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.embedding_layer_norm:
            self.embedding_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon, bias=config.use_bias)
        self.dropout = nn.Dropout(config.embd_pdrop)
        self.position_method = POSITION_METHODS[config.position_method](config)
        self.layers = nn.ModuleList([AlibiGPTDecoderLayer(config, idx) for idx in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon, bias=config.use_bias)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring(custom_args=CACHE_DOCS)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        cache = one_cache(cache, past_key_values)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)

        method = self.position_method
        prepare = attention_backend(self.config._attn_implementation, cache).prepare
        inputs = ForwardInputs(
            self.config, inputs_embeds, attention_mask, position_ids, cache, may_skip_mask=not method.has_bias
        )
        context = attention_context(inputs, kwargs)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = context.query_positions

        hidden_states = method.embed(inputs_embeds, position_ids)
        if self.config.embedding_layer_norm:
            hidden_states = self.embedding_norm(hidden_states)
        hidden_states = self.dropout(hidden_states)

        # `generate(assistant_early_exit=...)` drafts tokens with fewer layers by changing the config.
        for layer_idx, layer in enumerate(self.layers[: self.config.num_hidden_layers]):
            if layer_idx == 0 or method.bias_differs_by_layer:
                layer_mask = prepare(context, LayerBias(method, layer_idx) if method.has_bias else None)
            hidden_states = layer(
                hidden_states,
                attention_mask=layer_mask,
                position_ids=position_ids,
                position_method=method,
                # By transformers' own name: its layers drop the cache under gradient checkpointing.
                **{CACHE_NAME: cache},
                **kwargs,
            )
        hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, **{CACHE_NAME: cache})


@auto_docstring(custom_intro="AlibiGPT with a language modeling head.")
class AlibiGPTForCausalLM(TiedSharding, ContinuousBatching, AlibiGPTPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: AlibiGPTConfig) -> None:
        super().__init__(config)
        self.model = AlibiGPTModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        if config.tie_word_embeddings:
            self.share_outermost_unit()

    def create_masks_for_generate(
        self, config: AlibiGPTConfig, inputs_embeds: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Tensor | None:
        """Keep the 2D mask, from which positions are counted, and pad it to the length of a static cache."""
        if (position_ids := kwargs.get("position_ids")) is not None:  # a compiled forward cannot raise the error
            self.model.position_method.check_positions(position_ids)
        if attention_mask is None or attention_mask.ndim != 2:
            return attention_mask
        # For FlashAttention alone, `generate` keeps a mask that hides nothing. Once padded, it would hide empty slots.
        if config._attn_implementation == "flash_attention_2" and bool(attention_mask.all()):
            return None
        return F.pad(attention_mask, (0, max(0, kwargs[CACHE_NAME].get_max_length() - attention_mask.shape[-1])))

    @can_return_tuple
    @auto_docstring(custom_args=CACHE_DOCS + LOSS_CHUNK_DOCS)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        loss_chunk_tokens: int | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=one_cache(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states, loss, logits = outputs.last_hidden_state, None, None
        if labels is None or loss_chunk_tokens is None:
            logits = self.lm_head(slice_logits_to_keep(hidden_states, logits_to_keep))
        else:
            options = kwargs.get("num_items_in_batch"), kwargs.get("shift_labels")
            loss = chunked_causal_lm_loss(hidden_states, self.lm_head, labels, loss_chunk_tokens, *options)
        if labels is not None and loss is None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )


# The generic heads of transformers build their decoder through AutoModel, which would ask users of remote code for
# trust a second time. The heads below build it directly and inherit the generic forward. That forward accepts **kwargs
# but does not pass `num_items_in_batch` to the loss; `accepts_loss_kwargs = False` makes Trainer divide by its
# accumulation steps instead. That is correct for one label per row. With many, the head computes the loss itself.


@auto_docstring(custom_intro="AlibiGPT with a linear head on the last token of a sequence.")
class AlibiGPTForSequenceClassification(GenericForSequenceClassification, AlibiGPTPreTrainedModel):
    accepts_loss_kwargs = False

    def __init__(self, config: AlibiGPTConfig) -> None:
        AlibiGPTPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = AlibiGPTModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


@auto_docstring(custom_intro="AlibiGPT with a linear head on every token.")
class AlibiGPTForTokenClassification(GenericForTokenClassification, AlibiGPTPreTrainedModel):
    def __init__(self, config: AlibiGPTConfig) -> None:
        AlibiGPTPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = AlibiGPTModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    @auto_docstring(custom_args=CACHE_DOCS)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        cache = one_cache(cache, past_key_values)
        outputs: TokenClassifierOutput = super().forward(
            input_ids, attention_mask, position_ids, cache, inputs_embeds, **{**kwargs, "return_dict": True}
        )
        loss = None
        if labels is not None:
            loss = self.loss_function(outputs.logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=outputs.logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@auto_docstring(custom_intro="AlibiGPT with a span head for extractive question answering.")
class AlibiGPTForQuestionAnswering(GenericForQuestionAnswering, AlibiGPTPreTrainedModel):
    accepts_loss_kwargs = False

    def __init__(self, config: AlibiGPTConfig) -> None:
        AlibiGPTPreTrainedModel.__init__(self, config)
        self.model = AlibiGPTModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


__all__ = [
    "AlibiGPTForCausalLM",
    "AlibiGPTForQuestionAnswering",
    "AlibiGPTForSequenceClassification",
    "AlibiGPTForTokenClassification",
    "AlibiGPTModel",
    "AlibiGPTPreTrainedModel",
]
