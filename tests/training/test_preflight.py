"""What a training refuses by its back end or by the memory of its logits, and what of it a loss in chunks lifts."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from modeling_alibi_gpt.checkpoints import model_size
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.preflight import check_experiment, check_gradients
from modeling_alibi_gpt.training.trainer import train


MakeExperiment = Callable[..., ExperimentConfig]
LOGITS_OF_A_TOKEN = 270 * 4  # bytes
# Batches of 4 sequences of 32 tokens; by default Trainer evaluates 8 at once.
EVALUATED = ("training.eval_strategy=steps", "training.eval_steps=2")


@pytest.fixture
def has_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Gives this machine memory for the logits of so many tokens."""

    def limit(num_tokens: int) -> None:
        monkeypatch.setattr(model_size, "memory_bytes", lambda: num_tokens * LOGITS_OF_A_TOKEN)

    return limit


def test_a_chunked_loss_is_judged_by_its_chunk(make_experiment: MakeExperiment, has_memory: Callable) -> None:
    has_memory(100)  # the model itself takes 81
    with pytest.raises(ValueError, match="the logits of 4 sequences at once .* of 32 tokens need 135.0 KiB"):
        check_experiment(make_experiment())
    with pytest.raises(ValueError, match=r"the logits of 101 tokens at once \(loss_chunk_tokens\) need"):
        check_experiment(make_experiment("loss_chunk_tokens=101"))
    check_experiment(make_experiment("loss_chunk_tokens=100"))
    has_memory(4 * 32)
    check_experiment(make_experiment("loss_chunk_tokens=1000"))  # more than there are


def test_evaluations_need_all_logits(make_experiment: MakeExperiment, has_memory: Callable) -> None:
    has_memory(4 * 32)
    check_experiment(make_experiment())
    for settings in (EVALUATED, ("training.eval_on_start=true",)):
        for chunked in ((), ("loss_chunk_tokens=5",)):
            with pytest.raises(ValueError, match="the logits of 8 sequences at once .per_device_eval_batch_size"):
                check_experiment(make_experiment(*settings, *chunked))
    check_experiment(make_experiment(*EVALUATED, "training.per_device_eval_batch_size=4", "loss_chunk_tokens=5"))


def test_a_chunked_loss_that_would_change_nothing_is_refused(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=270, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    gpt2 = ("model.config=null", f"model.checkpoint={tmp_path / 'gpt2'}")
    check_experiment(make_experiment(*gpt2))
    with pytest.raises(ValueError, match="loss_chunk_tokens needs an AlibiGPT model, got gpt2"):
        check_experiment(make_experiment("loss_chunk_tokens=50", *gpt2))
    with pytest.raises(ValueError, match="loss_chunk_tokens and training.label_smoothing_factor"):
        check_experiment(make_experiment("loss_chunk_tokens=50", "training.label_smoothing_factor=0.1"))


SHARED = ("t5", "shared_offset", "kerple", "fire")
CHECKPOINTED = "training.activation_checkpointing=true"
REENTRANT = "training.activation_checkpointing_kwargs={use_reentrant: %s}"


@pytest.mark.parametrize("kwargs", [REENTRANT % "true", "training.activation_checkpointing_kwargs={debug: false}"])
@pytest.mark.parametrize("method", SHARED)
def test_a_learned_bias_that_layers_share_cannot_be_checkpointed_reentrantly(
    make_experiment: MakeExperiment, method: str, kwargs: str
) -> None:
    settings = [f"model.overrides.position_method={method}"]
    settings += ["model.overrides.fire_shared_by_layers=true"] if method == "fire" else []
    with pytest.raises(ValueError, match=f"position_method {method} .*: set use_reentrant: false in"):
        check_experiment(make_experiment(*settings, CHECKPOINTED, kwargs))
    check_experiment(make_experiment(*settings, CHECKPOINTED, REENTRANT % "false"))
    check_experiment(make_experiment(*settings, kwargs))  # nothing is checkpointed
    check_experiment(
        make_experiment(*settings, CHECKPOINTED, "training.activation_checkpointing_kwargs={offload: true}")
    )


@pytest.mark.parametrize("settings", [(), ("model.overrides.alibi_trainable=slopes",)])
def test_other_biases_train_with_reentrant_checkpoints(
    make_experiment: MakeExperiment, settings: tuple[str, ...]
) -> None:
    train(make_experiment(*settings, CHECKPOINTED, REENTRANT % "true", "training.max_steps=1"))


def test_flex_attention_is_refused_only_on_a_cpu(make_experiment: MakeExperiment) -> None:
    on_cpu = make_experiment("model.attn_implementation=flex_attention", "training.use_cpu=true")
    with pytest.raises(ValueError, match="'flex_attention' has no gradients on a CPU: train with sdpa, eager or"):
        check_experiment(on_cpu)
    check_gradients("flex_attention", "cuda")
    check_gradients("sdpa", "cpu")
