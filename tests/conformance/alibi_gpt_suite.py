"""AlibiGPT in transformers' model tests; ``run.py`` puts this file into their tree as a test module of theirs."""

import unittest
from typing import Any

from modeling_alibi_gpt import (
    AlibiGPTConfig,
    AlibiGPTForCausalLM,
    AlibiGPTForQuestionAnswering,
    AlibiGPTForSequenceClassification,
    AlibiGPTForTokenClassification,
    AlibiGPTModel,
)

from ... import test_fsdp_mixin, test_tensor_parallel_mixin
from ...causal_lm_tester import CausalLMModelTest, CausalLMModelTester


# The suite runs its tests of several processes for a few popular models only, and skips them for all others.
test_fsdp_mixin.FSDP_DISTRIBUTED_TEST_MODEL_TYPES.add("alibi_gpt")
test_tensor_parallel_mixin.TP_DISTRIBUTED_TEST_MODEL_TYPES.add("alibi_gpt")


class AlibiGPTModelTester(CausalLMModelTester):
    config_class = AlibiGPTConfig
    base_model_class = AlibiGPTModel
    causal_lm_class = AlibiGPTForCausalLM
    question_answering_class = AlibiGPTForQuestionAnswering
    sequence_classification_class = AlibiGPTForSequenceClassification
    token_classification_class = AlibiGPTForTokenClassification

    def __init__(self, parent: unittest.TestCase, **settings: Any) -> None:
        super().__init__(parent, num_attention_heads=4, num_key_value_heads=2, **settings)


class AlibiGPTModelTest(CausalLMModelTest, unittest.TestCase):
    model_tester_class = AlibiGPTModelTester
    _torch_compile_train_cls = AlibiGPTForCausalLM
