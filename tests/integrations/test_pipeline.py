"""Pipelines run every head that they know, and ``device_map`` places and offloads a model without changing it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    pipeline,
)


pytestmark = pytest.mark.integrations
PROMPTS = ["plan window", "score of a key", "bias slope mask head query value"]
LABELS = {"num_labels": 3, "id2label": {0: "plan", 1: "do", 2: "see"}, "label2id": {"plan": 0, "do": 1, "see": 2}}


@pytest.fixture
def save(make_config, tokenizer, tmp_path: Path):
    """A checkpoint folder with its tokenizer, and the model in it."""

    def make(auto, **fields) -> tuple[torch.nn.Module, str]:
        torch.manual_seed(0)
        model = auto.from_config(make_config(**fields)).eval()
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return model, str(tmp_path)

    return make


def test_text_generation(save, tokenizer) -> None:
    """A batch of unlike lengths, padded on the left, far beyond the training length of 32 tokens."""
    model, folder = save(AutoModelForCausalLM)
    generate = pipeline("text-generation", model=folder, device="cpu")
    generate.tokenizer.padding_side = "left"
    settings = {"max_new_tokens": 60, "do_sample": False}
    answers = generate(PROMPTS, batch_size=3, return_full_text=False, **settings)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
        expected = model.generate(tokens, **settings)[0, tokens.shape[1] :]
        assert answer[0]["generated_text"] == tokenizer.decode(expected, skip_special_tokens=True)


def test_text_classification(save, tokenizer) -> None:
    model, folder = save(AutoModelForSequenceClassification, **LABELS)
    classify = pipeline("text-classification", model=folder, device="cpu")
    answers = classify(PROMPTS, batch_size=3, top_k=None)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(prompt, return_tensors="pt")).logits[0].softmax(-1)
        for entry in answer:
            assert entry["score"] == pytest.approx(expected[LABELS["label2id"][entry["label"]]].item(), abs=1e-5)


def test_token_classification(save, tokenizer) -> None:
    model, folder = save(AutoModelForTokenClassification, **LABELS)
    classify = pipeline("token-classification", model=folder, device="cpu", ignore_labels=[])
    for prompt, answer in zip(PROMPTS, classify(PROMPTS, batch_size=3), strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(prompt, return_tensors="pt")).logits[0].softmax(-1).max(-1)
        assert [entry["entity"] for entry in answer] == [LABELS["id2label"][i] for i in expected.indices.tolist()]
        assert [entry["score"] for entry in answer] == pytest.approx(expected.values.tolist(), abs=1e-5)


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    return model(torch.randint(1, 200, (2, 40), generator=torch.Generator().manual_seed(0))).logits


@pytest.mark.parametrize("fields", [{}, {"alibi_trainable": "slopes"}, {"position_method": "learned"}], ids=str)
@pytest.mark.parametrize("placement", ["auto", "cpu", "disk"])
def test_placed_models_compute_the_same(save, tmp_path: Path, fields: dict, placement: str) -> None:
    """``disk`` leaves one of two layers, and the position method, in a folder until they are called."""
    model, folder = save(AutoModelForCausalLM, **{"train_context_length": 64, **fields})
    device_map = placement
    if placement == "disk":
        device_map = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm", "lm_head"), "cpu")
        device_map |= {"model.position_method": "disk", "model.layers.1": "disk", "model.dropout": "cpu"}
    placed = AutoModelForCausalLM.from_pretrained(folder, device_map=device_map, offload_folder=str(tmp_path / "off"))
    assert (placement == "disk") == any(weight.is_meta for weight in placed.parameters())
    assert torch.equal(logits(placed), logits(model))
    if placement == "disk":
        tokens = torch.tensor([[5, 9, 2, 60]])
        settings = {"max_new_tokens": 8, "do_sample": False}
        assert placed.generate(tokens, **settings).tolist() == model.generate(tokens, **settings).tolist()
