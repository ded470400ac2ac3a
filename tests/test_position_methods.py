"""Every position method: what it can do, where it ends, and that it is saved, loaded and trained."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from transformers import AutoModelForCausalLM

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.alibi import alibi_slopes
from modeling_alibi_gpt.position_methods import POSITION_METHODS
from tests.support.exact_cases import make_model


TRAIN_LENGTH = 32
# One row a method: whether one layer can tell the order of earlier tokens, and whether there is a longest length.
METHODS = {
    "alibi": (True, False),
    "learned": (True, True),
    "sinusoidal": (True, False),
    "rope": (True, False),
    "t5": (True, False),
    "shared_offset": (True, False),
    "kerple": (True, False),
    "fire": (True, False),
    "sandwich": (True, False),
    "none": (False, False),
}
FLOAT32_METHODS = ("t5", "shared_offset", "kerple", "fire")


def tiny_model(method: str = "alibi", **fields) -> AlibiGPTForCausalLM:
    torch.manual_seed(0)
    settings = {
        "vocab_size": 61,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "train_context_length": TRAIN_LENGTH,
        "initializer_range": 0.5,
        "position_method": method,
    }
    return AlibiGPTForCausalLM(AlibiGPTConfig(**{**settings, **fields})).eval()


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(1))


def test_every_method_has_a_row_here() -> None:
    assert list(METHODS) == list(POSITION_METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_order_matters_where_there_are_positions(method: str) -> None:
    model = tiny_model(method, num_hidden_layers=1, initializer_range=0.2)
    input_ids = tokens(1, 12)
    swapped = input_ids[:, [*range(8), 9, 8, 10, 11]]
    with torch.no_grad():
        change = (model(input_ids).logits[0, -1] - model(swapped).logits[0, -1]).abs().max().item()
    sees_order = METHODS[method][0]
    assert change > 1e-2 if sees_order else change < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_length_beyond_training(method: str) -> None:
    model = tiny_model(method)
    has_longest_length = METHODS[method][1]
    with torch.no_grad():
        assert model(tokens(1, TRAIN_LENGTH)).logits.isfinite().all()
        if has_longest_length:
            with pytest.raises(ValueError, match="learned positions end at .* 32 tokens, got .* 33"):
                model(tokens(1, TRAIN_LENGTH + 1))
        else:
            assert model(tokens(1, 8 * TRAIN_LENGTH)).logits.isfinite().all()


@pytest.mark.parametrize("back_end", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "case", ["alibi", "alibi_trained_beta", "alibi_trained_slopes", "learned", "t5", "shared_offset", "kerple", "fire"]
)
def test_weights_may_be_offloaded(case: str, back_end: str) -> None:
    """Accelerate holds weights on meta and brings those of a module back when it is called."""
    model = make_model(case, back_end)
    input_ids = tokens(2, 12)
    with torch.no_grad():
        expected = model(input_ids).logits
        cpu_offload(model, execution_device="cpu", offload_buffers=True)
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        assert torch.equal(model(input_ids).logits, expected)


@pytest.mark.parametrize("method", METHODS)
def test_save_and_load_to_the_last_bit(method: str, tmp_path) -> None:
    model = tiny_model(method)
    model.save_pretrained(tmp_path)
    loaded = AlibiGPTForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(tokens(2, 9)).logits, loaded(tokens(2, 9)).logits)


@pytest.mark.parametrize("num_heads", [3, 12])
@pytest.mark.parametrize("trainable", ["none", "beta", "slopes"])
def test_slopes_stay_float32(num_heads: int, trainable: str, tmp_path) -> None:
    """However the model comes to bfloat16; slopes of 3 and 12 heads are not powers of two."""
    exact = alibi_slopes(num_heads, beta=0.3)
    model = tiny_model(num_attention_heads=num_heads, alibi_beta=0.3, alibi_trainable=trainable)
    model.save_pretrained(tmp_path)
    loaded = AlibiGPTForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    for candidate in (loaded, copy.deepcopy(model).to(torch.bfloat16), copy.deepcopy(model).half(), loaded.float()):
        slopes = candidate.model.position_method.layer_slopes(0)
        assert slopes.dtype == torch.float32
        if trainable == "none":
            assert torch.equal(slopes, exact)
        else:
            # exp and log round once each, in units of a logarithm of at most 8.
            torch.testing.assert_close(slopes, exact, rtol=8 * torch.finfo(torch.float32).eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("beta", [0.7, 1e-9])
def test_a_learned_beta_starts_where_it_was_set(beta: float, dtype: torch.dtype) -> None:
    config = tiny_model(alibi_trainable="beta", alibi_beta=beta).config
    found, expected = (AutoModelForCausalLM.from_config(config, dtype=each) for each in (dtype, torch.float32))
    assert found.dtype == dtype
    assert torch.equal(found.model.position_method.bias_log_beta, expected.model.position_method.bias_log_beta)


@pytest.mark.parametrize(
    ("field", "value"),
    [("alibi_beta", 4.0), ("alibi_bias_max", 4.0), ("alibi_slope_kind", "uniform"), ("alibi_trainable", "beta")],
)
def test_fields_that_a_live_model_does_not_read_are_refused(field: str, value: object, tmp_path) -> None:
    """It would compute with the old value, and save the new one."""
    model = tiny_model()
    own = getattr(model.config, field)
    setattr(model.config, field, value)
    for each in (model, copy.deepcopy(model)):
        with pytest.raises(ValueError, match=f"config.{field} has no effect .* expected {own!r}, .* got {value!r}"):
            each(tokens(1, 4))
        with pytest.raises(ValueError, match=f"config.{field} has no effect"):
            each.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    setattr(model.config, field, own)
    assert model(tokens(1, 4)).logits.isfinite().all()


def test_a_list_of_slopes_changed_in_place_is_refused() -> None:
    model = tiny_model(alibi_slope_kind="custom", alibi_slopes=[1.0, 0.5, 0.25])
    model.config.alibi_slopes[0] = 2.0
    with pytest.raises(ValueError, match="config.alibi_slopes has no effect"):
        model(tokens(1, 4))


@pytest.mark.parametrize("method", FLOAT32_METHODS)
def test_learned_biases_stay_float32(method: str, tmp_path) -> None:
    model = tiny_model(method)
    exact = model.model.position_method.state_dict()
    assert exact
    model.save_pretrained(tmp_path)
    loaded = AlibiGPTForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16 and loaded.lm_head.weight.dtype == torch.bfloat16
    for candidate in (loaded, copy.deepcopy(model).to(torch.bfloat16), copy.deepcopy(model).half(), loaded.float()):
        state = candidate.model.position_method.state_dict()
        assert all(torch.equal(state[name], value) for name, value in exact.items())
        assert {value.dtype for value in state.values()} == {torch.float32}


@pytest.mark.parametrize("method", METHODS)
def test_a_bfloat16_model_computes_its_bias_in_float32(method: str) -> None:
    positions = tiny_model(method).model.position_method
    steps = torch.arange(40)[None]
    expected = positions.bias(0, steps, steps, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = copy.deepcopy(positions).to(torch.bfloat16).bias(0, steps, steps, torch.float32)
    assert positions.has_bias == (expected is not None)
    assert expected is None or torch.equal(under_autocast, expected)


@pytest.mark.parametrize("method", ["rope", "sinusoidal"])
def test_a_bfloat16_model_computes_angles_of_far_positions_in_float32(method: str) -> None:
    """In bfloat16, positions of this size are multiples of 32 or 512, many turns of the fastest pair."""
    positions, steps = tiny_model(method).model.position_method, torch.tensor([[5000, 5001, 70_001]])
    if method == "rope":
        states = torch.randn(1, 3, 3, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
        found, exact = (positions.rotate(each, each, steps)[0] for each in (states, states.double()))
    else:
        states = torch.zeros(1, 3, 48, dtype=torch.bfloat16)
        found, exact = (positions.embed(each, steps) for each in (states, states.double()))
    assert found.dtype == torch.bfloat16
    # A few roundings to bfloat16; float32 rounds an angle of 70,001 by 0.004.
    assert (found.double() - exact).abs().max() <= 4 * torch.finfo(torch.bfloat16).eps * exact.abs().max()


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_learns(method: str) -> None:
    model = tiny_model(method, fire_threshold=4.5).train()
    model(tokens(2, 24), labels=tokens(2, 24)).loss.backward()
    for name, parameter in model.model.position_method.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("method", METHODS)
def test_what_was_built_on_the_meta_device_starts_like_any_other(method: str) -> None:
    with torch.device("meta"):
        model = AlibiGPTForCausalLM(tiny_model(method).config)
    model.to_empty(device="cpu")
    for tensor in model.model.position_method.state_dict().values():
        tensor.fill_(torch.nan)
    torch.manual_seed(0)
    model.model.position_method.init_weights()
    expected = tiny_model(method).model.position_method
    torch.manual_seed(0)
    expected.init_weights()
    found = model.model.position_method
    assert all(torch.equal(*pair) for pair in zip(found.buffers(), expected.buffers(), strict=True))
    if method != "learned":  # its embedding belongs to transformers' own start
        assert all(torch.equal(*pair) for pair in zip(found.parameters(), expected.parameters(), strict=True))


def test_built_on_the_meta_device_and_filled() -> None:
    config = tiny_model().config
    with torch.device("meta"):
        model = AlibiGPTForCausalLM(config)
    model.to_empty(device="cpu")
    model.init_weights()
    model.model.position_method.init_weights()
    assert torch.equal(model.model.position_method.slopes, alibi_slopes(3))


@pytest.mark.parametrize("trainable", ["beta", "slopes"])
def test_trained_slopes_learn_and_stay_positive(trainable: str, tmp_path) -> None:
    model = tiny_model(alibi_trainable=trainable).train()
    positions = model.model.position_method
    before = torch.stack([positions.layer_slopes(layer) for layer in range(2)]).detach()
    optimizer = torch.optim.SGD(positions.parameters(), lr=50.0)
    for _ in range(5):
        model(tokens(2, 16), labels=tokens(2, 16)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = torch.stack([positions.layer_slopes(layer) for layer in range(2)]).detach()
    assert (after > 0).all() and after.isfinite().all()
    assert (after != before).all()
    if trainable == "beta":
        ratio = after / before
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    model.save_pretrained(tmp_path)
    loaded = AlibiGPTForCausalLM.from_pretrained(tmp_path).model.position_method
    assert torch.equal(torch.stack([loaded.layer_slopes(layer) for layer in range(2)]), after)


def test_dynamic_scaling_changes_nothing_up_to_the_training_length() -> None:
    plain = tiny_model()
    for kind in ("dynamic_linear", "dynamic_ntk"):
        dynamic = tiny_model(alibi_scaling={"type": kind})
        with torch.no_grad():
            long = tokens(1, 2 * TRAIN_LENGTH)
            difference = (plain(long).logits - dynamic(long).logits).abs().amax(-1)[0]
        # log and exp of ntk round each slope a little, even when the factor is 1.
        assert difference[:TRAIN_LENGTH].max() < 1e-4
        assert difference[-1] > 1e-2


def test_unknown_attention_names_are_refused_before_they_drop_the_bias() -> None:
    model = tiny_model()
    for name in ("vllm", "sglang", "paged|sdpa"):
        model.config._attn_implementation_internal = name
        with pytest.raises(ValueError, match="would silently drop the position bias; use one of eager, sdpa"):
            model(tokens(1, 4))
