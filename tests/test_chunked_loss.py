"""The loss in chunks of tokens is the loss, and so are its gradients; no tensor of all logits exists on the way."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM


BATCH, LENGTH, VOCAB = 3, 40, 311
EPS = {torch.float32: torch.finfo(torch.float32).eps, torch.float64: torch.finfo(torch.float64).eps}


def make_model(dtype: torch.dtype = torch.float64, **fields) -> AlibiGPTForCausalLM:
    torch.manual_seed(0)
    config = AlibiGPTConfig(
        vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, initializer_range=0.2, **fields
    )
    return AlibiGPTForCausalLM(config).to(dtype)


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    input_ids = torch.randint(0, VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    labels = input_ids.clone()
    labels[1, 25:] = -100
    return input_ids, labels


def loss_and_gradients(model: AlibiGPTForCausalLM, **kwargs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    input_ids, labels = make_batch()
    loss = model(input_ids, labels=labels, **kwargs).loss
    model.zero_grad()
    (3 * loss).backward()
    return loss.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 60, BATCH * LENGTH, 1000])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_items_in_batch": 77},
        {"num_items_in_batch": torch.tensor(77)},
        {"shift_labels": make_batch()[1].roll(3, dims=1)},
    ],
    ids=["mean", "number", "tensor", "shifted"],
)
def test_loss_and_gradients_are_those_of_all_tokens_at_once(tied: bool, chunk_tokens: int, options: dict) -> None:
    """Of float64 models; the loss itself is float32 in transformers, so terms of one sign are summed with its eps."""
    model = make_model(tie_word_embeddings=tied)
    loss, gradients = loss_and_gradients(model, **options, loss_chunk_tokens=chunk_tokens)
    expected, references = loss_and_gradients(model, **options)
    assert loss.dtype == expected.dtype
    assert loss.item() == pytest.approx(expected.item(), rel=2 * BATCH * LENGTH * EPS[torch.float32])
    for name, gradient in gradients.items():
        # Softmax rows are rounded to float32 in both; the same rows, so only the order of float64 sums differs.
        scale = references[name].abs().max().item()
        torch.testing.assert_close(gradient, references[name], rtol=0.0, atol=scale * EPS[torch.float32], msg=name)


def test_autocast_rounds_logits_alike() -> None:
    model = make_model(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = loss_and_gradients(model, loss_chunk_tokens=7)
        expected, _ = loss_and_gradients(model)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=2 * BATCH * LENGTH * EPS[torch.float32])
    with torch.no_grad():
        exact = model(make_batch()[0], labels=make_batch()[1]).loss
    assert loss.item() != exact.item(), "autocast is on in the chunks"


class _LargestTensor(TorchDispatchMode):
    num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


@pytest.mark.parametrize("chunk_tokens", [None, 8])
def test_no_tensor_holds_the_logits_of_a_batch(chunk_tokens: int | None) -> None:
    model = make_model(torch.float32)
    with _LargestTensor() as largest:
        loss_and_gradients(model, loss_chunk_tokens=chunk_tokens)
    num_logits = BATCH * LENGTH * VOCAB
    assert largest.num_elements == num_logits if chunk_tokens is None else largest.num_elements < num_logits


def test_there_are_no_logits_and_without_labels_nothing_changes() -> None:
    model = make_model(torch.float32)
    input_ids, labels = make_batch()
    with torch.no_grad():
        assert model(input_ids, labels=labels, loss_chunk_tokens=8).logits is None
        torch.testing.assert_close(model(input_ids, loss_chunk_tokens=8).logits, model(input_ids).logits)


def test_a_chunk_holds_a_token() -> None:
    input_ids, labels = make_batch()
    with pytest.raises(ValueError, match="loss_chunk_tokens must be at least 1, got 0"):
        make_model()(input_ids, labels=labels, loss_chunk_tokens=0)
