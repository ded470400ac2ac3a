"""``torch.compile``, ``torch.export`` and ONNX: one graph for every length, and the numbers of the plain model."""

from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from transformers import CompileConfig, StaticCache

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM


# Logits here are of order one; a compiler may order float32 sums otherwise: a few units of eps times sqrt(width).
ATOL = 1e-4


def _model(**fields) -> AlibiGPTForCausalLM:
    torch.manual_seed(0)
    settings = {
        "vocab_size": 61,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "initializer_range": 0.2,
    }
    return AlibiGPTForCausalLM(AlibiGPTConfig(**{**settings, **fields})).eval()


def _tokens(batch_size: int, length: int) -> Tensor:
    return torch.randint(0, 61, (batch_size, length), generator=torch.Generator().manual_seed(length))


@pytest.fixture
def counter() -> torch._dynamo.testing.CompileCounterWithBackend:
    torch._dynamo.reset()
    return torch._dynamo.testing.CompileCounterWithBackend("aot_eager")


@pytest.mark.parametrize("back_end", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
def test_one_graph_for_every_length(counter, back_end: str, padded: bool) -> None:
    model = _model()
    model.set_attn_implementation(back_end)
    batches = []
    for length in (17, 18, 33, 64, 70):
        mask = torch.ones(2, length, dtype=torch.long)
        mask[0, :5] = 0
        batches.append({"input_ids": _tokens(2, length), "attention_mask": mask if padded else None})
    with torch.no_grad():
        expected = [model(**batch, use_cache=False).logits for batch in batches]
        compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
        counts: list[int] = []
        for batch, logits in zip(batches, expected, strict=True):
            torch.testing.assert_close(
                compiled(**batch, use_cache=False).logits[:, 5:], logits[:, 5:], atol=ATOL, rtol=0
            )
            counts.append(counter.frame_count)
    # One graph (fullgraph), and none after the first call; dynamo may begin that one twice.
    assert counts == [counts[0]] * len(batches)


@pytest.mark.parametrize("start", [100, 4096])
def test_documents_that_start_late_keep_the_bias_of_the_others_in_a_graph(counter, start: int) -> None:
    """The rest of a long document, packed before a whole one, in a 16-bit model."""
    positions = torch.cat([torch.arange(start, start + 24), torch.arange(24)])[None]
    from_zero = torch.cat([torch.arange(24), torch.arange(24)])[None]
    model = torch.compile(_model().to(torch.bfloat16), backend=counter)
    with torch.no_grad():
        late, expected = (
            model(input_ids=_tokens(1, 48), position_ids=places, use_cache=False).logits
            for places in (positions, from_zero)
        )
    assert torch.equal(late, expected), "distances are the same"


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_packed_documents_with_a_mask_are_isolated_in_a_graph_too(counter, padded: bool) -> None:
    """Whether a mask hides anything is unknown in a graph, and must not matter."""
    model, tokens = _model(), _tokens(2, 12)
    positions = torch.tensor([[*range(5), *range(7)], [*range(12)]])
    visible = torch.ones(2, 12, dtype=torch.long)
    visible[1, 9:] = 0 if padded else 1
    expected = model(tokens, position_ids=positions, use_cache=False).logits
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for run in (model, compiled):
        logits = run(tokens, attention_mask=visible, position_ids=positions, use_cache=False).logits
        torch.testing.assert_close(logits[visible.bool()], expected[visible.bool()], atol=ATOL, rtol=0)
    assert counter.frame_count == 1


POSITION_METHODS = {
    "t5": {},
    "shared_offset": {"train_context_length": 16},
    "kerple": {},
    "fire": {"train_context_length": 16},
    "sandwich": {},
    "rope": {"rope_extension": {"type": "dynamic_ntk"}, "train_context_length": 16},
}


@pytest.mark.parametrize("method", POSITION_METHODS)
def test_every_position_method_is_one_graph_for_every_length(counter, method: str) -> None:
    model = _model(position_method=method, num_hidden_layers=1, **POSITION_METHODS[method])
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    counts: list[int] = []
    with torch.no_grad():
        for tokens in (_tokens(2, 17), _tokens(2, 33), _tokens(2, 70)):
            expected = model(tokens, use_cache=False).logits
            torch.testing.assert_close(compiled(tokens, use_cache=False).logits, expected, atol=ATOL, rtol=0)
            counts.append(counter.frame_count)
    assert counts == [counts[0]] * len(counts)


@pytest.mark.parametrize("trainable", ["none", "slopes"])
def test_backward_is_one_graph_too(counter, trainable: str) -> None:
    model = _model(alibi_trainable=trainable)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    gradients = []
    for forward in (model, compiled):
        model.zero_grad()
        forward(_tokens(2, 20), labels=_tokens(2, 20), use_cache=False).loss.backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    assert counter.frame_count == 1
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_static_decoding_is_one_graph(counter) -> None:
    model = _model()
    input_ids = _tokens(2, 24)
    with torch.no_grad():
        expected = model(input_ids, use_cache=False).logits
        cache = StaticCache(config=model.config, max_cache_len=32)
        model(input_ids[:, :8], past_key_values=cache)
        compiled = torch.compile(model, fullgraph=True, backend=counter)
        for position in range(8, 24):
            logits = compiled(input_ids[:, position : position + 1], past_key_values=cache).logits
            torch.testing.assert_close(logits[:, 0], expected[:, position], atol=ATOL, rtol=0)
    assert counter.frame_count == 1


def test_static_decoding_beyond_a_table_of_positions_is_refused(counter) -> None:
    model, prompt = _model(position_method="learned", train_context_length=16), _tokens(1, 7)

    def backend(*graph: Any) -> Any:  # a function, because `generate` copies its settings
        return counter(*graph)

    compile_config = CompileConfig(backend=backend, mode="default")
    compile_config._compile_all_devices = True
    options = {"cache_implementation": "static", "compile_config": compile_config, "do_sample": False}
    assert model.generate(prompt, max_new_tokens=10, **options).shape == (1, 17)  # the last is not read
    assert counter.frame_count, "decoding was not compiled"
    with pytest.raises(ValueError, match="end at train_context_length = 16 tokens, got a text of 17"):
        model.generate(prompt, max_new_tokens=20, **options)


def test_export_with_a_dynamic_length() -> None:
    model = _model()
    length = torch.export.Dim("length", min=2, max=4096)
    program = torch.export.export(
        model, (_tokens(2, 17),), {"use_cache": False}, dynamic_shapes={"input_ids": {1: length}, "use_cache": None}
    )
    with torch.no_grad():
        for tokens in (_tokens(2, 5), _tokens(2, 90)):
            logits = program.module()(tokens, use_cache=False).logits
            torch.testing.assert_close(logits, model(tokens, use_cache=False).logits, atol=ATOL, rtol=0)


def test_export_with_a_dynamic_batch_and_a_padding_mask() -> None:
    model = _model()
    batch, length = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("length", min=6, max=4096)
    shape = {0: batch, 1: length}
    inputs = {"input_ids": _tokens(2, 17), "attention_mask": (torch.arange(17) >= 5).long().repeat(2, 1)}
    shapes = {"input_ids": shape, "attention_mask": shape, "use_cache": None}
    program = torch.export.export(model, (), {**inputs, "use_cache": False}, dynamic_shapes=shapes)
    tokens, mask = _tokens(5, 90), (torch.arange(90) >= 7).long().repeat(5, 1)
    with torch.no_grad():
        logits = program.module()(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, 7:]
        expected = model(tokens, attention_mask=mask).logits[:, 7:]
    torch.testing.assert_close(logits, expected, atol=ATOL, rtol=0)
