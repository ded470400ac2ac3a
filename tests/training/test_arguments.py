"""TrainingArguments of an experiment: the project's defaults, and what would break its promises refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from modeling_alibi_gpt.training.arguments import build_arguments


PLATEAU = ("training.lr_scheduler_type=reduce_lr_on_plateau", "training.eval_strategy=epoch")
BEST = ("training.load_best_model_at_end=true", "training.eval_strategy=steps", "training.eval_steps=2")


def test_defaults_lie_beneath_what_the_experiment_says(make_experiment: Callable[..., Any]) -> None:
    arguments = build_arguments(make_experiment())
    assert (arguments.save_total_limit, arguments.greater_is_better, arguments.report_to) == (2, False, [])
    assert arguments.use_cpu == (not torch.accelerator.is_available())
    arguments = build_arguments(make_experiment("training.save_total_limit=5", "training.learning_rate=3e-4"))
    assert (arguments.save_total_limit, arguments.learning_rate) == (5, 3e-4)


@pytest.mark.parametrize(("accumulation", "device_batch_size"), [(1, 4), (2, 2), (4, 1)])
def test_a_global_batch_is_shared_out(
    make_experiment: Callable[..., Any], accumulation: int, device_batch_size: int
) -> None:
    config = make_experiment(f"training.gradient_accumulation_steps={accumulation}", "training.use_cpu=true")
    assert build_arguments(config).per_device_train_batch_size == device_batch_size


def test_precision_decides_autocast(make_experiment: Callable[..., Any]) -> None:
    for precision, expected in (("float32", (False, "no")), ("bfloat16", (True, "bf16")), ("auto", (False, "no"))):
        arguments = build_arguments(make_experiment(f"precision={precision}", "training.use_cpu=true"))
        assert (arguments.bf16, arguments.mixed_precision) == expected


def test_a_launcher_cannot_change_the_precision(
    make_experiment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="the launcher asks for mixed precision 'bf16'"):
        build_arguments(make_experiment())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training.max_step=3"], "unknown key 'training.max_step'; did you mean 'training.max_steps'?"),
        (["training.overwrite_output_dir=true"], "unknown key 'training.overwrite_output_dir'"),
        (["training.learning_rate=fast"], "'training.learning_rate' must be a valid number, got 'fast'"),
        (["training.max_steps=1e3"], "'training.max_steps' must be a valid integer, got 1000.0"),
        (["training.eval_strategy=never"], "training: never is not a valid IntervalStrategy"),
        (["training.optim=adamm"], "training: adamm is not a valid OptimizerNames"),
        (["training.warmup_steps=-1"], "training.warmup_steps must be at least 0, got -1"),
        (["training.bf16=true"], "training.bf16 cannot be set: set 'precision' of the experiment"),
        (["training.fp16=true"], "training.fp16 cannot be set"),
        (["training.bf16_full_eval=true"], "would round the weights of the model that is saved"),
        (["training.fp16_full_eval=true"], "would round the weights of the model that is saved"),
        (["training.save_only_model=true"], "could not resume from such checkpoints"),
        (["training.ignore_data_skip=true"], "would see different data"),
        (["training.auto_find_batch_size=true"], "the experiment fixes the global batch size"),
        (["training.resume_from_checkpoint=here"], "resumes by itself"),
        (["training.per_device_train_batch_size=2"], "either global_batch_size or .*, not both"),
        (["global_batch_size=5", "training.gradient_accumulation_steps=2"], r"global_batch_size \(5\) must be a mult"),
        (["global_batch_size=0"], r"global_batch_size \(0\)"),
        (["training.save_steps=5"], r"training.save_steps \(5\) must be a multiple of training.logging_steps \(2\)"),
        (["training.save_steps=0.5"], "must be whole numbers of steps"),
        (["training.save_strategy=epoch"], r"training.save_strategy \(epoch\) must equal .* \(steps\)"),
        (
            ["training.save_strategy=best", "training.eval_strategy=steps", "training.eval_steps=3"],
            r"training.eval_steps \(3\) must be a multiple",
        ),
        (
            [*BEST, "training.save_steps=4"],
            r"eval_steps \(2\) must equal .*save_steps \(4\) .* a model that was evaluated but not saved: .* best",
        ),
        ([*BEST, "training.save_steps=4", "training.logging_strategy=no"], r"eval_steps \(2\) must equal"),
        (["training.report_to=nowhere"], "'nowhere' is unknown or not installed; available: .*tensorboard"),
        (["training.max_steps=1:30"], "'training.max_steps' must be a valid integer, got '1:30'"),
        (["training.max_steps=-7"], "training.max_steps must be at least 1, or -1 for num_train_epochs.*, got -7"),
        (["training.weight_decay=-0.1"], "training.weight_decay must be at least 0, got -0.1"),
        (["training.max_grad_norm=-1"], "training.max_grad_norm must be at least 0, got -1"),
        (["training.learning_rate=.nan"], "'training.learning_rate' must be a finite number, got nan"),
        (["training.learning_rate=-1e-3"], "training.learning_rate must be at least 0"),
        (["training.label_smoothing_factor=1.5"], "training.label_smoothing_factor must be from 0 to 1, got 1.5"),
        (["training.label_smoothing_factor=-0.1"], "training.label_smoothing_factor must be from 0 to 1, got -0.1"),
        (["training.adam_beta2=1"], "training.adam_beta2 must be at least 0 and below 1, got 1"),
        (["training.eval_accumulation_steps=0"], "training.eval_accumulation_steps must be above 0, got 0"),
        (["training.save_total_limit=0"], "training.save_total_limit must be above 0, got 0"),
        (["training.seed=-1"], r"training.seed must be at least 0 and below 2\*\*32, got -1"),
        (["training.dataloader_num_workers=1000000"], "training.dataloader_num_workers must be from 0 to 1024"),
        (["training.max_steps=10000000000000000000000"], "must be an integer of at most 63 bits, got one of 74 bits"),
        (
            [f"training.max_steps={2**63}"],
            "'training.max_steps' must be an integer of at most 63 bits, got one of 64 bits",
        ),
        (["training.log_level=bogus"], "training.log_level must be one of .*debug, .*, got 'bogus'"),
        (["training.log_level_replica=loud"], "training.log_level_replica must be one of"),
        (["training.train_sampling_strategy=bogus"], "training.train_sampling_strategy must be one of random"),
        (
            ["training.include_num_input_tokens_seen=no"],
            "include_num_input_tokens_seen must be one of all, non_padding",
        ),
        (["training.include_num_input_tokens_seen=false"], "must be one of all, non_padding, got 'no'"),
        (["training.train_sampling_strategy=group_by_length"], "one of random, sequential, got 'group_by_length'"),
        (["training.torch_compile_backend=bogus"], "training.torch_compile_backend must be one of .*inductor"),
        (
            ["training.dataloader_multiprocessing_context=x"],
            "must be one of .*spawn.*, got 'x'",
        ),
        (["training.optim=adamw_bnb_8bit"], "training.optim adamw_bnb_8bit cannot be used: .*bitsandbytes"),
        (["training.optim=galore_adamw"], "training.optim galore_adamw cannot be used: .*galore"),
        (["training.optim=adamw_torch", "training.optim_args=x"], "training.optim adamw_torch cannot be used"),
        (["training.use_liger_kernel=true"], "needs the package liger-kernel, which is not installed"),
        (["training.gradient_accumulation_steps=0"], "training.gradient_accumulation_steps must be above 0, got 0"),
        (
            ["training.lr_scheduler_type=cosine", "training.lr_scheduler_kwargs={num_cycle: 2}"],
            "unknown key 'training.lr_scheduler_kwargs.num_cycle'; did you mean .*num_cycles'",
        ),
        (["training.metric_for_best_model=accuracy"], "must be one of loss, nats_per_token, got 'accuracy'"),
        (["training.eval_do_concat_batches=false"], "training.eval_do_concat_batches cannot be set"),
        (["training.accelerator_config={split_batches: true}"], "training.accelerator_config cannot be set"),
        (["training.use_cache=true"], "training.use_cache cannot be set"),
        (["training.average_tokens_across_devices=false"], "average_tokens_across_devices cannot be set"),
        (["training.label_names=[x]"], "training.label_names cannot be set"),
        (["training.label_names=[]"], "training.label_names cannot be set"),
        (["training.prediction_loss_only=true"], "training.prediction_loss_only cannot be set"),
        (
            ["training.lr_scheduler_type=warmup_stable_decay"],
            "training.lr_scheduler_type warmup_stable_decay cannot be used: .*'num_decay_steps'",
        ),
        (["training.lr_scheduler_type=cosine_with_min_lr"], "cannot be used: .*min_lr or min_lr_rate should be set"),
        (
            ["training.lr_scheduler_type=polynomial", "training.lr_scheduler_kwargs={lr_end: 1}"],
            "training.lr_scheduler_type polynomial cannot be used: lr_end",
        ),
        (
            [*PLATEAU, "training.lr_scheduler_kwargs={factr: 0.5}"],
            "training.lr_scheduler_type reduce_lr_on_plateau cannot be used: .*'factr'",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(
    make_experiment: Callable[..., Any], settings: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_arguments(make_experiment(*settings))


@pytest.mark.parametrize(
    "settings",
    [
        ["training.save_strategy=no", "training.logging_steps=3"],
        ["training.logging_strategy=no", "training.save_steps=5"],
        ["training.save_strategy=epoch", "training.logging_strategy=epoch"],
        [*BEST, "training.save_steps=2"],
        [*BEST, "training.save_strategy=best"],
        [*BEST[:1], *(f"training.{each}_strategy=epoch" for each in ("eval", "save", "logging"))],
        ["training.bf16=false"],
        ["training.metric_for_best_model=eval_nats_per_token", "training.report_to=[tensorboard]"],
        ["training.eval_do_concat_batches=true", "training.label_names=null", "training.prediction_loss_only=false"],
        ["training.lr_scheduler_type=warmup_stable_decay", "training.lr_scheduler_kwargs={num_decay_steps: 3}"],
        ["training.lr_scheduler_type=inverse_sqrt", "training.warmup_steps=0.1", "training.max_steps=-1"],
        [*PLATEAU, "training.lr_scheduler_kwargs={factor: 0.5}"],
    ],
)
def test_what_breaks_no_promise_is_allowed(make_experiment: Callable[..., Any], settings: list[str]) -> None:
    build_arguments(make_experiment(*settings))


def test_a_secret_is_refused_and_not_repeated(make_experiment: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="training.hub_token is a secret, .*HF_TOKEN in the environment") as refusal:
        make_experiment("training.hub_token=hf_12345")
    assert "hf_12345" not in str(refusal.value)
    assert build_arguments(make_experiment("training.hub_token=null")).hub_token is None
