"""Biases and rotations by themselves: against each paper's formula, against transformers, and how they start."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, T5Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.t5.modeling_t5 import T5Attention

from modeling_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.position_base import PositionMethod
from modeling_alibi_gpt.position_biases import t5_bucket
from modeling_alibi_gpt.position_methods import POSITION_METHODS
from modeling_alibi_gpt.position_rope import rope_frequencies
from tests.support.exact_cases import CASES, make_model
from tests.support.position_reference import FORMULAS, pair_bias


BIAS_CASES = [case for case, fields in CASES.items() if fields.get("position_method") in FORMULAS]
LENGTHS = (1, 2, 63, 65, 200)
ROUNDING_FLOAT32 = 32 * torch.finfo(torch.float32).eps  # a few operations on numbers of order ten
ROUNDING_FLOAT64 = 1e-11


def make_positions(method: str, **fields) -> PositionMethod:
    torch.manual_seed(0)
    settings = {"vocab_size": 61, "hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2}
    return POSITION_METHODS[method](AlibiGPTConfig(**{**settings, "position_method": method, **fields}))


def weights_of(positions: PositionMethod) -> dict[str, np.ndarray]:
    return {f"model.position_method.{k}": v.detach().double().numpy() for k, v in positions.named_parameters()}


def formula_rows(
    weights: Mapping[str, np.ndarray], positions: PositionMethod, layer: int, queries: list[int]
) -> torch.Tensor:
    """``(H, Q, K)``, keys up to the last query; zero for keys ahead of a query."""
    config = positions.config
    rows = np.zeros((config.num_attention_heads, len(queries), max(queries) + 1))
    for row, i in enumerate(queries):
        for j in range(i + 1):
            rows[:, row, j] = pair_bias(weights, config, layer, i, j)
    return torch.from_numpy(rows)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("case", BIAS_CASES)
def test_bias_is_the_formula_of_the_paper(case: str, length: int) -> None:
    positions = make_model(case).model.position_method
    queries = sorted({0, length // 2, length - 1})
    query_positions, key_positions = torch.tensor([queries]), torch.arange(length)[None]
    past = key_positions[0] <= query_positions[0, :, None]
    for layer in range(2):
        expected = formula_rows(weights_of(positions), positions, layer, queries)
        for dtype, rounding in ((torch.float32, ROUNDING_FLOAT32), (torch.float64, ROUNDING_FLOAT64)):
            bias = positions.bias(layer, query_positions, key_positions, dtype)
            assert bias.dtype == dtype and bias.shape == (1, *expected.shape)
            error = ((bias[0].double() - expected) * past).abs().max()
            assert error <= rounding * max(expected.abs().max().item(), 1.0)


@pytest.mark.parametrize("case", [case for case in BIAS_CASES if not case.startswith("sandwich")])
def test_gradient_of_the_bias_is_that_of_the_formula(case: str) -> None:
    """Every parameter along a random direction, by central differences of the float64 formula."""
    positions, queries, step = make_model(case).model.position_method, [0, 3, 11], 1e-6
    steps = torch.arange(12)[None]
    probe = torch.randn(6, 3, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    probe *= steps[0] <= torch.tensor(queries)[:, None]
    (positions.bias(1, torch.tensor([queries]), steps, torch.float64)[0] * probe).sum().backward()
    weights = weights_of(positions)
    for name, parameter in positions.named_parameters():
        direction = np.random.default_rng(2).standard_normal(parameter.shape)
        full_name = f"model.position_method.{name}"
        ahead, behind = (
            (formula_rows(weights | {full_name: weights[full_name] + sign * step * direction}, positions, 1, queries))
            for sign in (1, -1)
        )
        expected = ((ahead - behind) * probe).sum().item() / (2 * step)
        found = (parameter.grad.double().numpy() * direction).sum()
        # Gradients are stored in float32; the differences keep about ten of sixteen digits.
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 16), (2, 5), (64, 1000)])
def test_t5_is_the_decoder_of_transformers(num_buckets: int, max_distance: int) -> None:
    config = T5Config(
        relative_attention_num_buckets=num_buckets,
        relative_attention_max_distance=max_distance,
        num_heads=3,
        d_model=48,
        is_decoder=True,
    )
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    positions = make_positions("t5", t5_num_buckets=num_buckets, t5_max_distance=max_distance)
    with torch.no_grad():
        positions.bucket_bias.copy_(theirs.relative_attention_bias.weight)
        steps = torch.arange(300)[None]
        past = steps[0] <= steps[0, :, None]
        ours = positions.bias(0, steps, steps, torch.float32) * past
        assert torch.equal(ours, theirs.compute_bias(300, 300) * past)


def test_t5_buckets_grow_from_one_token_to_the_longest_distance() -> None:
    buckets = [t5_bucket(distance, 32, 128) for distance in range(200)]
    assert buckets[:17] == [*range(17)]
    assert buckets == sorted(buckets)
    assert set(buckets) == set(range(32))
    assert set(buckets[113:]) == {31}


def test_offsets_beyond_training_share_the_last_bias() -> None:
    positions = make_positions("shared_offset", train_context_length=8)
    row = positions.bias(0, torch.tensor([[99]]), torch.arange(100)[None], torch.float32)[0, :, 0].flip(-1)
    assert torch.equal(row[:, :8], positions.offset_bias.T)
    assert (row[:, 7:] == row[:, 7:8]).all()


def test_sandwich_of_far_positions_is_that_of_near_ones() -> None:
    positions = make_positions("sandwich")
    near, far = (positions.bias(0, start + torch.tensor([[9]]), start + torch.arange(10)[None], torch.float32)
                 for start in (0, 2**20))  # fmt: skip
    torch.testing.assert_close(far, near, rtol=0, atol=1e-5)
    assert near.max() == 0


@pytest.mark.parametrize("variant", ["log", "power"])
def test_kerple_starts_where_its_code_does_and_falls_with_distance(variant: str) -> None:
    positions = make_positions("kerple", kerple_variant=variant, num_attention_heads=48)
    r1, r2 = positions.kernel(torch.float64)
    highest = {"log": (2, 1), "power": (1, 2)}[variant]
    for parameter, high in zip((r1, r2), highest, strict=True):
        assert parameter.min() >= 0.01 * (1 - 1e-6) and parameter.max() <= high
        assert parameter.max() > 0.8 * high
    row = positions.bias(0, torch.tensor([[500]]), torch.arange(501)[None], torch.float64)
    assert (row.diff(dim=-1) > 0).all() and not row[..., -1].any()


def test_fire_starts_where_its_listing_does() -> None:
    positions = make_positions("fire", train_context_length=2048)
    torch.testing.assert_close(positions.bias_log_threshold.exp(), torch.full((2,), 512.0))
    torch.testing.assert_close(positions.bias_log_c.exp(), torch.full((2,), 0.1))
    linear = torch.nn.Linear(32, 3)
    assert positions.output_weight.abs().max() <= linear.weight.abs().max() * 1.2
    assert 0.9 < positions.hidden_weight.abs().max() <= 1
    assert make_positions("fire", fire_threshold=7).bias_log_threshold.exp().tolist() == pytest.approx([7.0, 7.0])
    assert not make_positions("fire", fire_shared_by_layers=True).bias_differs_by_layer


EXTENSIONS = [
    {"type": "linear", "factor": 4.0},
    {"type": "yarn", "factor": 4.0},
    {"type": "yarn", "factor": 16.0, "beta_fast": 16, "beta_slow": 2},
    {"type": "yarn", "factor": 2.0, "attention_factor": 1.5},
]


@pytest.mark.parametrize("head_dim", [8, 64])
@pytest.mark.parametrize("extension", EXTENSIONS, ids=str)
def test_rope_is_that_of_transformers(extension: dict, head_dim: int) -> None:
    frequencies, factor = ours_of_rope(extension, head_dim, torch.tensor([[0]]))
    expected, expected_factor = theirs_of_rope(extension, head_dim)
    torch.testing.assert_close(frequencies, expected, rtol=1e-6, atol=0)
    assert factor == pytest.approx(expected_factor)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_dynamic_ntk_is_what_transformers_decodes_token_by_token(factor: float) -> None:
    steps = torch.tensor([[0, 511, 512, 700, 4095]])
    frequencies, _ = ours_of_rope({"type": "dynamic_ntk", "factor": factor}, 64, steps)
    for found, position in zip(frequencies[0], steps[0].tolist(), strict=True):
        expected, _ = theirs_of_rope({"type": "dynamic", "factor": factor}, 64, position + 1)
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)


def ours_of_rope(extension: dict, head_dim: int, steps: torch.Tensor) -> tuple[torch.Tensor, float]:
    config = AlibiGPTConfig(
        head_dim=head_dim, position_method="rope", rope_extension=extension, train_context_length=512
    )
    return rope_frequencies(config, steps, torch.float32)


def theirs_of_rope(extension: dict, head_dim: int, num_tokens: int | None = None) -> tuple[torch.Tensor, float]:
    parameters = {key: value for key, value in extension.items() if key != "type"} | {"rope_type": extension["type"]}
    if extension["type"] == "yarn":
        parameters["original_max_position_embeddings"] = 512
    config = LlamaConfig(
        head_dim=head_dim, max_position_embeddings=512, rope_parameters=parameters | {"rope_theta": 10000.0}
    )
    return ROPE_INIT_FUNCTIONS[extension["type"]](config, seq_len=num_tokens)
