"""Training arguments out of range, or of packages that are not installed: no folder is made for them."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.bad_input.refusals import Case, Inputs, config_file, experiment, parametrized, refused


ARGUMENTS: dict[str, list[Any]] = {
    "adam_beta1": [-0.1, 1.0],
    "adam_beta2": [-0.1, 1.5],
    "adam_epsilon": [0.0, -1e-8],
    "accelerator_config": [{"bogus": 1}],
    "bf16": [True],
    "data_seed": [-1],
    "dataloader_multiprocessing_context": ["bogus"],
    "dataloader_num_workers": [-1, 10**9],
    "dataloader_prefetch_factor": [0],
    "eval_accumulation_steps": [0, -1],
    "eval_do_concat_batches": [False],
    "eval_delay": [-1],
    "eval_steps": [0, -3],
    "eval_strategy": ["bogus"],
    "gradient_accumulation_steps": [0, -1, 10**9],
    "hub_token": ["hf_secret"],
    "include_num_input_tokens_seen": ["bogus"],
    "label_names": [["x"]],
    "label_smoothing_factor": [-0.1, 1.1, 7],
    "learning_rate": [-1.0, float("nan"), float("inf"), "fast"],
    "log_level": ["bogus", ""],
    "log_level_replica": ["bogus"],
    "logging_steps": [0, -1],
    "lr_scheduler_type": ["bogus", "warmup_stable_decay"],
    "max_grad_norm": [-1.0, float("nan")],
    "max_steps": [-7, 0, 1.5, "1:30", 10**30, True],
    "neftune_noise_alpha": [-1.0],
    "num_train_epochs": [0, -1.0, float("inf")],
    "optim": ["bogus", "adamw_bnb_8bit", "galore_adamw", "lomo", "grokadamw", "apollo_adamw"],
    "optim_args": ["bogus"],
    "output_dir": [None, 5, ["a"]],
    "per_device_eval_batch_size": [0, -1],
    "prediction_loss_only": [True],
    "report_to": ["bogus"],
    "save_steps": [0, -1],
    "save_strategy": ["bogus"],
    "save_total_limit": [0, -1],
    "seed": [-1, 2**32, 10**30],
    "torch_compile_backend": ["bogus"],
    "torch_empty_cache_steps": [0],
    "train_sampling_strategy": ["bogus"],
    "use_liger_kernel": [True],
    "warmup_steps": [-1],
    "weight_decay": [-0.1, float("nan")],
    "weight_decai": [0.1],
}
SECTIONS: dict[str, list[Any]] = {
    "global_batch_size": [0, -4, 10**30, "many"],
    "precision": ["float16", 32],
    "data__train_length_tokens": [0, -1, 2, "16"],
    "data__validation_fraction": [0, 1, -0.5, float("nan")],
    "data__source": ["bogus", "text:nowhere/*.txt", "text:", "hub:", ""],
    "data__tokenizer": ["nowhere"],
    "data__max_train_tokens": [0, -1, 3],
    "milestones": [{"steps": [-1], "lengths_tokens": [8]}, {"steps": [1], "lengths_tokens": [0]}, {"steps": "x"}],
    "model": [None, 5, {}, {"config": "nowhere.json"}, {"checkpoint": "nowhere/at-all"}],
    "model__attn_implementation": ["bogus", "flash_attention_2"],
    "training": [None, 5, []],
}


def _changed(changes: dict[str, Any], work: Path, inputs: Inputs) -> list[str]:
    return config_file(work, experiment(work, inputs, **changes))


def _cases() -> list[Case]:
    fields = {f"training__{name}": values for name, values in ARGUMENTS.items()} | SECTIONS
    return [
        Case(f"{name} {value!r}"[:60], "train", partial(_changed, {name: value}), "")
        for name, values in fields.items()
        for value in values
    ]


@parametrized(_cases())
def test_arguments(
    case: Case, tmp_path: Path, inputs: Inputs, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(case, tmp_path, inputs, capfd)
