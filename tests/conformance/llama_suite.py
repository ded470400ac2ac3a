"""Llama in the same tests with the settings of ``alibi_gpt_suite.py``: what AlibiGPT's counts are held against."""

import unittest
from typing import Any

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)

from ... import test_fsdp_mixin, test_tensor_parallel_mixin
from ...causal_lm_tester import CausalLMModelTest, CausalLMModelTester


test_fsdp_mixin.FSDP_DISTRIBUTED_TEST_MODEL_TYPES.add("llama")
test_tensor_parallel_mixin.TP_DISTRIBUTED_TEST_MODEL_TYPES.add("llama")


class LlamaModelTester(CausalLMModelTester):
    config_class = LlamaConfig
    base_model_class = LlamaModel
    causal_lm_class = LlamaForCausalLM
    question_answering_class = LlamaForQuestionAnswering
    sequence_classification_class = LlamaForSequenceClassification
    token_classification_class = LlamaForTokenClassification

    def __init__(self, parent: unittest.TestCase, **settings: Any) -> None:
        super().__init__(parent, num_attention_heads=4, num_key_value_heads=2, **settings)


class LlamaModelTest(CausalLMModelTest, unittest.TestCase):
    model_tester_class = LlamaModelTester
    _torch_compile_train_cls = LlamaForCausalLM
    # As in transformers' own test of Llama, whose offloading test fails at another split.
    model_split_percents = [0.5, 0.7, 0.8]
