"""Stand-in for tests/causal_lm_tester.py, which the source distribution lacks: the mixins at work on a small model."""

from typing import Any

import torch
from transformers import PreTrainedConfig

from .generation.test_utils import GenerationTesterMixin
from .test_configuration_common import ConfigTester
from .test_fsdp_mixin import FSDPTesterMixin
from .test_modeling_common import ModelTesterMixin, ids_tensor, torch_device
from .test_pipeline_mixin import PipelineTesterMixin
from .test_tensor_parallel_mixin import TensorParallelTesterMixin
from .test_training_mixin import TrainingTesterMixin


class CausalLMModelTester:
    """The config and the inputs of the tests; subclasses name the classes under test."""

    config_class: type[PreTrainedConfig]
    base_model_class: type[torch.nn.Module]
    causal_lm_class: type[torch.nn.Module]
    question_answering_class: type[torch.nn.Module]
    sequence_classification_class: type[torch.nn.Module]
    token_classification_class: type[torch.nn.Module]

    batch_size, seq_length, num_labels = 13, 7, 3
    is_training = True
    vocab_size, hidden_size, intermediate_size = 99, 32, 32
    num_hidden_layers, num_attention_heads, num_key_value_heads = 2, 2, 2
    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __init__(self, parent: Any, **settings: Any) -> None:
        self.parent = parent
        for name, value in settings.items():
            setattr(self, name, value)

    @property
    def all_model_classes(self) -> tuple[type[torch.nn.Module], ...]:
        return (
            self.base_model_class,
            self.causal_lm_class,
            self.question_answering_class,
            self.sequence_classification_class,
            self.token_classification_class,
        )

    @property
    def pipeline_model_mapping(self) -> dict[str, type[torch.nn.Module]]:
        return {
            "feature-extraction": self.base_model_class,
            "text-generation": self.causal_lm_class,
            "question-answering": self.question_answering_class,
            "text-classification": self.sequence_classification_class,
            "token-classification": self.token_classification_class,
            "zero-shot": self.sequence_classification_class,
        }

    def get_config(self) -> PreTrainedConfig:
        return self.config_class(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            pad_token_id=self.pad_token_id,
            bos_token_id=self.bos_token_id,
            eos_token_id=self.eos_token_id,
            tie_word_embeddings=False,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        visible = torch.ones_like(input_ids).tril().to(torch_device)
        return self.get_config(), {"input_ids": input_ids, "attention_mask": visible}


class CausalLMModelTest(
    ModelTesterMixin,
    GenerationTesterMixin,
    PipelineTesterMixin,
    TrainingTesterMixin,
    TensorParallelTesterMixin,
    FSDPTesterMixin,
):
    """All mixins that the distribution has, and its test of the config."""

    model_tester_class: type[CausalLMModelTester]
    model_tester: CausalLMModelTester

    def setUp(self) -> None:
        self.model_tester = self.model_tester_class(self)
        self.all_model_classes = self.model_tester.all_model_classes
        self.pipeline_model_mapping = self.model_tester.pipeline_model_mapping

    def test_config(self) -> None:
        ConfigTester(self, config_class=self.model_tester.config_class).run_common_tests()
