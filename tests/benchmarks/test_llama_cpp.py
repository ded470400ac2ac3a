"""What the comparison with llama.cpp knows without it: the GELU of ggml, and settings that mean nothing."""

import sys

import pytest
import torch
import torch.nn.functional as F

from benchmarks.llama_cpp import GgmlGELU, LlamaCpp, LlamaCppConfig


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gelu_of_ggml_is_the_tanh_approximation_to_float16(dtype: torch.dtype) -> None:
    states = torch.linspace(-12, 12, 4001, dtype=dtype)
    found, exact = GgmlGELU()(states), F.gelu(states.double(), approximate="tanh")
    assert found.dtype == dtype
    # Half a step of float16 for the argument, times a slope of at most 1.13, and as much for the value.
    half_step = torch.finfo(torch.float16).eps / 2
    error = (found.double() - exact).abs()
    assert (error <= half_step * (1.13 * states.abs() + exact.abs()) + torch.finfo(torch.float16).tiny).all()
    assert error.max() > half_step
    assert torch.equal(found[states >= 10], states[states >= 10]) and not found[states <= -10].any()


def test_settings_without_a_meaning_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="float32 model, got dtype 'bfloat16'"):
        LlamaCppConfig(model="model", dtype="bfloat16")
    with pytest.raises(ValueError, match="precision must be one of default, float32, got 'float16'"):
        LlamaCpp("model.gguf", precision="float16")
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ValueError, match="pip install xllamacpp"):
        LlamaCpp("model.gguf")
