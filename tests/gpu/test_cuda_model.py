"""Whole models on a GPU against the float64 loops: logits, caches, generation, graphs, no waiting between layers."""

import itertools

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from modeling_alibi_gpt import AlibiWindowCache
from modeling_alibi_gpt.attention import ATTENTION_BACKENDS, LayerMask
from modeling_alibi_gpt.attention_fused import FusedAttention
from tests import test_cache, test_continuous_batching
from tests.gpu.device import DEVICE
from tests.support.exact_cases import BATCHES, CASES, POSITION_CASES, Batch, make_model
from tests.test_modeling_exact import FEEDS, FEW_INPUTS, TOLERANCE, expected_logits, feed_at_once, max_error


pytestmark = pytest.mark.gpu

WIDE = {"head_dim": 16}  # flex attention's kernels need that much
FLEX_CASES = ["alibi", "alibi_dynamic_ntk", "t5", "rope"]


@pytest.fixture(autouse=True)
def fresh_graphs() -> None:
    torch._dynamo.reset()


def on_gpu(batch: Batch) -> Batch:
    parts = (batch.token_ids, batch.visible, batch.position_ids)
    return Batch(*(None if part is None else part.to(DEVICE) for part in parts))


@pytest.mark.parametrize("back_end", ["eager", "sdpa"])
@pytest.mark.parametrize(("layout", "feed"), FEW_INPUTS)
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_equal_the_reference(case: str, layout: str, feed: str, back_end: str) -> None:
    logits = FEEDS[feed](make_model(case, back_end).to(DEVICE), on_gpu(BATCHES[layout]))
    assert max_error(logits.cpu(), expected_logits(case, layout), BATCHES[layout].visible) <= TOLERANCE


@pytest.mark.parametrize(("layout", "feed"), [*FEW_INPUTS, ("left", "at_once"), ("packed", "at_once")])
@pytest.mark.parametrize("case", FLEX_CASES)
@torch.no_grad()
def test_flex_logits_are_those_of_eager(case: str, layout: str, feed: str) -> None:
    batch = BATCHES[layout]
    expected = FEEDS[feed](make_model(case, "eager", torch.float64, **WIDE), batch)
    logits = FEEDS[feed](make_model(case, "flex_attention", **WIDE).to(DEVICE), on_gpu(batch))
    assert max_error(logits.cpu(), expected.numpy(), batch.visible) <= TOLERANCE


@pytest.mark.parametrize("layout", ["whole", "left", "packed"])
@pytest.mark.parametrize("back_end", ["sdpa", "flex_attention", "alibi_banded"])
@pytest.mark.parametrize("case", ["alibi", "alibi_trained_slopes"])
def test_gradients_are_those_of_eager(case: str, back_end: str, layout: str) -> None:
    """Of the largest gradient of a tensor, as much as promised of logits of order one."""
    results = []
    for name, device, dtype in (("eager", "cpu", torch.float64), (back_end, DEVICE, torch.float32)):
        model = make_model(case, name, dtype, **WIDE).to(device)
        batch = BATCHES[layout] if device == "cpu" else on_gpu(BATCHES[layout])
        logits = feed_at_once(model, batch)
        if batch.visible is not None:
            logits = logits * batch.visible[..., None]
        logits.square().mean().backward()
        results.append({key: parameter.grad.cpu().double() for key, parameter in model.named_parameters()})
    for key, expected in results[0].items():
        atol = TOLERANCE * max(1e-3, expected.abs().max().item())
        torch.testing.assert_close(results[1][key], expected, atol=atol, rtol=0, msg=key)


@pytest.mark.parametrize("case", ["alibi", *[case for case in POSITION_CASES if case not in ("alibi", "learned")][:3]])
def test_static_cache_in_a_compiled_generate(case: str) -> None:
    """transformers compiles the decoding step of a static cache on a GPU by itself."""
    batch, options = on_gpu(BATCHES["left"]), {"max_new_tokens": 12, "do_sample": False}
    model = make_model(case, "sdpa").to(DEVICE)
    expected = model.generate(batch.token_ids, attention_mask=batch.visible, **options)
    found = model.generate(batch.token_ids, attention_mask=batch.visible, cache_implementation="static", **options)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("back_end", ["eager", "sdpa", "flex_attention", "alibi_banded"])
def test_generated_tokens_are_those_of_the_cpu(back_end: str) -> None:
    options = {"max_new_tokens": 12, "do_sample": False}
    batch = BATCHES["left"]
    expected = make_model("alibi", "eager", **WIDE).generate(batch.token_ids, attention_mask=batch.visible, **options)
    batch = on_gpu(batch)
    model = make_model("alibi", back_end, **WIDE).to(DEVICE)
    assert torch.equal(model.generate(batch.token_ids, attention_mask=batch.visible, **options).cpu(), expected)


def test_window_cache_generates_the_tokens_of_a_full_one() -> None:
    model, prompt = test_cache.make_model(head_dim=16).to(DEVICE), test_cache.draw_tokens(2, 200).to(DEVICE)
    options = {"max_new_tokens": 60, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    cache = AlibiWindowCache.from_qk_norm(model)
    tokens = model.generate(prompt, past_key_values=cache, **options)
    model.set_attn_implementation("eager")
    assert torch.equal(tokens, model.generate(prompt, **options))


@pytest.mark.parametrize("back_end", ["sdpa", "paged|eager"])
def test_continuous_batches_give_the_tokens_of_generate(back_end: str) -> None:
    model, prompts = test_continuous_batching._model(), test_continuous_batching._prompts()
    generation = test_continuous_batching.GENERATION
    expected = [
        model.generate(torch.tensor([prompt]), generation_config=generation)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    model.to(DEVICE).set_attn_implementation(back_end)
    batching = test_continuous_batching.ContinuousBatchingConfig(**test_continuous_batching.BATCHING)
    outputs = model.generate_batch(prompts, generation_config=generation, continuous_batching_config=batching)
    assert [output.generated_tokens for output in outputs.values()] == expected


@pytest.mark.parametrize(
    ("back_end", "dtype", "is_packed"),
    [
        *itertools.product(
            ["eager", "sdpa", "flex_attention", "alibi_banded"], [torch.float32, torch.bfloat16], [False]
        ),
        *itertools.product(["sdpa", "alibi_banded"], [torch.bfloat16], [True]),
    ],
    ids=str,
)
@pytest.mark.parametrize("learns", [False, True])
def test_layers_never_wait_for_the_gpu(
    back_end: str, learns: bool, dtype: torch.dtype, is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first layer to the last of a training step's forward, and of its backward, fused kernels included."""
    model = make_model("alibi_trained_slopes" if learns else "alibi", back_end, dtype, **WIDE).to(DEVICE).train()
    tokens = torch.randint(0, 61, (2, 1200), device=DEVICE)
    positions = torch.arange(600, device=DEVICE).repeat(2, 2) if is_packed else None
    masks, backend = [], ATTENTION_BACKENDS[back_end]

    def prepare(*args: object) -> LayerMask:
        masks.append(backend.prepare(*args))
        return masks[-1]

    with monkeypatch.context() as patch:
        patch.setitem(ATTENTION_BACKENDS, back_end, backend._replace(prepare=prepare))
        model(tokens, position_ids=positions, use_cache=False).logits.sum().backward()  # compiles
    takes_kernels = dtype == torch.bfloat16 and back_end in ("sdpa", "alibi_banded")
    assert [isinstance(mask, FusedAttention) for mask in masks] == [takes_kernels] * len(masks)

    def forbid(module: nn.Module, *args: object) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def allow(module: nn.Module, *args: object) -> None:
        torch.cuda.set_sync_debug_mode("default")

    try:
        model.model.layers[0].register_forward_pre_hook(forbid)
        model.model.layers[-1].register_forward_hook(allow)
        logits = model(tokens, position_ids=positions, use_cache=False).logits.sum()
        torch.cuda.set_sync_debug_mode("error")
        logits.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("back_end", ["sdpa", "flex_attention", "alibi_banded"])
def test_trainer_in_bfloat16(back_end: str, tmp_path) -> None:
    """A repeated text is learned: the loss falls by half at least."""
    model = make_model("alibi", back_end, **WIDE).train()
    rows = [{"input_ids": [(7 * i) % 61 for i in range(600)]}] * 64
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=30, per_device_train_batch_size=4, learning_rate=3e-3, bf16=True,
        logging_steps=10,
        use_cpu=DEVICE == "cpu", save_strategy="no", report_to=[],
    )  # fmt: skip

    def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
        tokens = torch.tensor([row["input_ids"] for row in batch])
        return {"input_ids": tokens, "labels": tokens}

    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
