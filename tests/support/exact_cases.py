"""Cases of the exactness tests: configs that change the mathematics, token layouts, models with peaked attention."""

from dataclasses import dataclass
from typing import Any

import torch

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM


SMALL = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "train_context_length": 200,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "attention_dropout": 0.0,
}

POSITION_CASES = {
    "alibi": {},
    "alibi_beta": {"alibi_beta": 0.7},
    "alibi_uniform": {"alibi_slope_kind": "uniform", "alibi_beta": 0.1},
    "alibi_custom": {"alibi_slope_kind": "custom", "alibi_slopes": [1.0, 0.3, 0.1, 0.03, 0.9, 0.2]},
    "alibi_bias_max": {"alibi_bias_max": 4.0},
    "alibi_inside": {"alibi_bias_inside_scaling": True, "alibi_beta": 2.0},
    "alibi_inside_scale": {"alibi_bias_inside_scaling": True, "attention_scale": 0.5},
    "alibi_linear": {"alibi_scaling": {"type": "linear", "factor": 4.0}},
    "alibi_ntk": {"alibi_scaling": {"type": "ntk", "factor": 4.0}},
    "alibi_dynamic_linear": {"alibi_scaling": {"type": "dynamic_linear"}, "train_context_length": 8},
    "alibi_dynamic_ntk": {"alibi_scaling": {"type": "dynamic_ntk"}, "train_context_length": 8},
    "alibi_trained_beta": {"alibi_trainable": "beta"},
    "alibi_trained_slopes": {"alibi_trainable": "slopes"},
    "alibi_trained_beta_ntk": {"alibi_trainable": "beta", "alibi_scaling": {"type": "ntk", "factor": 4.0}},
    "alibi_trained_slopes_dynamic": {
        "alibi_trainable": "slopes",
        "alibi_scaling": {"type": "dynamic_ntk"},
        "train_context_length": 8,
    },
    "sinusoidal": {"position_method": "sinusoidal", "initializer_range": 0.5},
    "sinusoidal_amplitude": {"position_method": "sinusoidal", "sinusoidal_amplitude": 0.3},
    "learned": {"position_method": "learned"},
    "rope": {"position_method": "rope"},
    "rope_theta": {"position_method": "rope", "rope_theta": 100.0},
    "rope_linear": {"position_method": "rope", "rope_extension": {"type": "linear", "factor": 4.0}},
    "rope_ntk": {"position_method": "rope", "rope_extension": {"type": "ntk", "factor": 4.0}},
    "rope_dynamic_ntk": {
        "position_method": "rope",
        "rope_extension": {"type": "dynamic_ntk"},
        "train_context_length": 8,
    },
    "rope_dynamic_ntk_factor": {
        "position_method": "rope",
        "rope_extension": {"type": "dynamic_ntk", "factor": 2.0},
        "train_context_length": 8,
    },
    "rope_yarn": {"position_method": "rope", "rope_extension": {"type": "yarn", "factor": 4.0}},
    "t5": {"position_method": "t5", "t5_num_buckets": 8, "t5_max_distance": 16},
    "shared_offset": {"position_method": "shared_offset"},
    "kerple": {"position_method": "kerple"},
    "kerple_power": {"position_method": "kerple", "kerple_variant": "power"},
    "fire": {"position_method": "fire", "fire_threshold": 4.5},
    "fire_shared": {"position_method": "fire", "fire_shared_by_layers": True, "fire_hidden_size": 8},
    "sandwich": {"position_method": "sandwich"},
    "sandwich_dim": {"position_method": "sandwich", "sandwich_dim": 16},
    "none": {"position_method": "none"},
}

ARCHITECTURE_CASES = {
    "heads_1": {"num_attention_heads": 1, "num_key_value_heads": 1, "alibi_beta": 64.0},
    "heads_3": {"num_attention_heads": 3, "num_key_value_heads": 3},
    "heads_8": {"num_attention_heads": 8, "num_key_value_heads": 8},
    "heads_12": {"num_attention_heads": 12, "num_key_value_heads": 12},
    "grouped_8_2": {"num_attention_heads": 8, "num_key_value_heads": 2},
    "head_dim": {"head_dim": 16},
    "qk_norm": {"qk_norm": True},
    "qk_norm_rope": {"qk_norm": True, "position_method": "rope"},
    "clip_qkv": {"clip_qkv": 0.5},
    "attention_scale": {"attention_scale": 0.2},
    "gelu_tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "gelu_new": {"hidden_act": "gelu_new"},
    "no_bias": {"use_bias": False},
    "embedding_layer_norm": {"embedding_layer_norm": True},
    "embedding_layer_norm_learned": {"embedding_layer_norm": True, "position_method": "learned"},
    "untied": {"tie_word_embeddings": False},
    "epsilon": {"layer_norm_epsilon": 1e-2, "qk_norm": True},
}

CASES = POSITION_CASES | ARCHITECTURE_CASES


@dataclass(frozen=True)
class Batch:
    """A token layout: the inputs of the model, and what the reference needs to know about them."""

    token_ids: torch.Tensor
    visible: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None

    @property
    def document_ids(self) -> torch.Tensor | None:
        """``(B, T)``: a document starts where the positions start again."""
        return None if self.position_ids is None else (self.position_ids == 0).cumsum(-1)

    def first(self, num_tokens: int) -> "Batch":
        """The first ``num_tokens`` slots of every row."""
        parts = (self.token_ids, self.visible, self.position_ids)
        return Batch(*(None if part is None else part[:, :num_tokens] for part in parts))


def make_batches() -> dict[str, Batch]:
    """Three rows of 19 tokens, of which 19, 12 and 5 are visible in padded layouts; whole chunks are padding.

    Packed rows with padding have it behind the documents, before them, and within them; positions skip it.
    """
    token_ids = torch.randint(SMALL["vocab_size"], (3, 19), generator=torch.Generator().manual_seed(1))
    slots, lengths = torch.arange(19), torch.tensor([[19], [12], [5]])
    holes = torch.ones(3, 19, dtype=torch.long)
    holes[1, 3:10] = 0
    holes[2, [0, 1, 4, 5, 6, 7, 8, 11, 12, 13, 14, 16, 17, 18]] = 0
    packed = [[*range(7), *range(12)], [*range(19)], [*range(1), *range(5), *range(13)]]
    mixed = [
        [*range(7), *range(5), *[0] * 7],
        [1, 1, 1, *range(3), 2, 2, 3, 4, 5, *range(8)],
        [*range(3), 2, 2, *range(3, 7), *range(3), 2, *range(3, 9)],
    ]
    gaps = torch.ones(3, 19, dtype=torch.long)
    gaps[0, 12:] = gaps[1, [0, 1, 2, 6, 7]] = gaps[2, [3, 4, 12]] = 0
    return {
        "whole": Batch(token_ids),
        "left": Batch(token_ids, visible=(slots >= 19 - lengths).long()),
        "right": Batch(token_ids, visible=(slots < lengths).long()),
        "middle": Batch(token_ids, visible=holes),
        "packed": Batch(token_ids, position_ids=torch.tensor(packed)),
        "packed_padded": Batch(token_ids, visible=gaps, position_ids=torch.tensor(mixed)),
    }


BATCHES = make_batches()


def make_model(
    case: str, back_end: str = "sdpa", dtype: torch.dtype = torch.float32, **fields: Any
) -> AlibiGPTForCausalLM:
    """The model of a case, with random weights such that attention is peaked and every norm and bias matters."""
    torch.manual_seed(0)
    config = AlibiGPTConfig(**SMALL | CASES[case] | fields, attn_implementation=back_end)
    model = AlibiGPTForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "bias_log" in name:
                parameter.add_(0.3 * noise)
            elif "position_method" in name and "embedding" not in name:
                parameter.copy_(noise)
            elif parameter.ndim == 2:
                gain = 1.5 if "q_proj" in name or "k_proj" in name else 1.0
                parameter.copy_(gain * noise / parameter.shape[1] ** 0.5)
            else:
                parameter.copy_(0.2 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model.to(dtype)
