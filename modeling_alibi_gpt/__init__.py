"""Public API of AlibiGPT and its registration with the Auto classes of transformers.

Import this package before calling ``AutoModelForCausalLM.from_pretrained(folder)`` or another Auto class.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto import modeling_auto

from modeling_alibi_gpt.cache_alibi_gpt import AlibiWindowCache
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.modeling_alibi_gpt import (
    AlibiGPTForCausalLM,
    AlibiGPTForQuestionAnswering,
    AlibiGPTForSequenceClassification,
    AlibiGPTForTokenClassification,
    AlibiGPTModel,
    AlibiGPTPreTrainedModel,
)
from modeling_alibi_gpt.position_base import PositionMethod
from modeling_alibi_gpt.position_methods import register_position_method


__version__ = "0.1.0"

AutoConfig.register("alibi_gpt", AlibiGPTConfig, exist_ok=True)
AutoModel.register(AlibiGPTConfig, AlibiGPTModel, exist_ok=True)
AutoModelForCausalLM.register(AlibiGPTConfig, AlibiGPTForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(AlibiGPTConfig, AlibiGPTForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(AlibiGPTConfig, AlibiGPTForTokenClassification, exist_ok=True)
AutoModelForQuestionAnswering.register(AlibiGPTConfig, AlibiGPTForQuestionAnswering, exist_ok=True)

# Trainer (to decide whether label smoothing shifts labels), pipelines and lm-eval look up class names in these tables.
modeling_auto.MODEL_MAPPING_NAMES["alibi_gpt"] = "AlibiGPTModel"
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["alibi_gpt"] = "AlibiGPTForCausalLM"
modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["alibi_gpt"] = "AlibiGPTForSequenceClassification"
modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES["alibi_gpt"] = "AlibiGPTForTokenClassification"
modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES["alibi_gpt"] = "AlibiGPTForQuestionAnswering"

__all__ = [
    "AlibiGPTConfig",
    "AlibiGPTForCausalLM",
    "AlibiGPTForQuestionAnswering",
    "AlibiGPTForSequenceClassification",
    "AlibiGPTForTokenClassification",
    "AlibiGPTModel",
    "AlibiGPTPreTrainedModel",
    "AlibiWindowCache",
    "PositionMethod",
    "register_position_method",
]
