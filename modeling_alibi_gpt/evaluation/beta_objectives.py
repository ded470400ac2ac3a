"""What one beta costs: the validation loss of a training with it, or of one checkpoint that is given it."""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import optuna
from accelerate import PartialState
from optuna.trial import Trial
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modeling_alibi_gpt.evaluation.checkpoints import (
    checkpoint_fingerprint,
    load_causal_lm,
    load_model_config,
    load_model_tokenizer,
    train_context_length,
)
from modeling_alibi_gpt.evaluation.measurement import load_text, measurement_provenance, perplexity_figures
from modeling_alibi_gpt.evaluation.scoring import score_stream
from modeling_alibi_gpt.modeling_alibi_gpt import AlibiGPTForCausalLM
from modeling_alibi_gpt.training.checkpoints import EXPERIMENT_FILE, save_model_folder
from modeling_alibi_gpt.training.experiment import ExperimentConfig, build_config, read_mapping
from modeling_alibi_gpt.training.model_setup import model_config
from modeling_alibi_gpt.training.trainer import train


if TYPE_CHECKING:
    from modeling_alibi_gpt.evaluation.beta_sweep import SweepConfig


class Objective(Protocol):
    """A way to price a beta, and what follows from the best one.

    Attributes:
        settings: What decides the price beside beta; JSON values.
    """

    settings: dict[str, Any]

    def __call__(self, trial: Trial, beta: float) -> list[float]:
        """Validation nats per token for ``beta``, one figure a seed."""

    def trained_records(self) -> list[dict[str, Any]]:
        """``trained_beta`` records: what beta becomes when it learns."""

    def best_experiment(self, beta: float) -> dict[str, Any]:
        """A complete experiment that ``scripts/train.py`` accepts."""

    def save_best_model(self, beta: float, folder: Path) -> None:
        """Write the model with the best beta as a folder for ``from_pretrained``."""


class RetrainObjective:
    """Trains the experiment once for each seed; a killed training goes on from its checkpoint.

    Raises:
        ValueError: The experiment cannot be used, has no ALiBi to tune, or cannot be pruned.
    """

    def __init__(self, sweep: "SweepConfig") -> None:
        values = sweep.experiment if isinstance(sweep.experiment, dict) else read_mapping(str(sweep.experiment))
        self.sweep = sweep
        self.experiment = build_config(ExperimentConfig, values)
        if (method := getattr(model_config(self.experiment.model), "position_method", None)) != "alibi":
            raise ValueError(f"a sweep of beta needs position_method alibi, the experiment has {method!r}")
        if sweep.pruning and self.experiment.training.get("eval_strategy", "no") == "no":
            raise ValueError("pruning needs evaluations during training: set training.eval_strategy in the experiment")
        settings = dataclasses.asdict(self.experiment)
        for key in ("output_dir", "seed"):
            settings["training"].pop(key, None)
        settings["model"]["overrides"].pop("alibi_beta", None)
        self.settings = {"mode": "retrain", "seeds": sweep.seeds, "experiment": settings}

    def __call__(self, trial: Trial, beta: float) -> list[float]:
        records = []
        for index, seed in enumerate(self.sweep.seeds):
            callbacks = [_PruningCallback(trial)] if self.sweep.pruning and index == 0 else []
            experiment = self._experiment(self._trial_dir(beta, seed), seed, alibi_beta=beta, alibi_trainable="none")
            records.append(train(experiment, callbacks=callbacks))
            for checkpoint in self._trial_dir(beta, seed).glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
        nats = [record["validation_nats_per_token"] for record in records]
        trial.set_user_attr("nats_per_token_by_seed", nats)
        trial.set_user_attr("provenance", records[0]["provenance"])
        return nats

    def trained_records(self) -> list[dict[str, Any]]:
        return [self._trained_record(kind, seed) for kind in self.sweep.trained for seed in self.sweep.seeds]

    def best_experiment(self, beta: float) -> dict[str, Any]:
        folder = Path(self.sweep.output_dir) / "best_run"
        return dataclasses.asdict(self._experiment(folder, self.sweep.seeds[0], alibi_beta=beta))

    def save_best_model(self, beta: float, folder: Path) -> None:
        source = self._trial_dir(beta, self.sweep.seeds[0])
        if not source.exists():
            raise ValueError(
                f"the best trial, beta {beta:g}, was trained on another machine: its {source} has the model"
            )
        with _folder_beside(folder) as beside:
            shutil.copytree(source, beside, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoint-*", "runs"))

    def _trained_record(self, kind: str, seed: int) -> dict[str, Any]:
        folder = Path(self.sweep.output_dir) / "trained" / f"{kind}-seed-{seed}"
        record = train(self._experiment(folder, seed, alibi_trainable=kind))
        positions = AlibiGPTForCausalLM.from_pretrained(folder).model.position_method
        num_layers = positions.config.num_hidden_layers
        return {
            "kind": "trained_beta",
            "alibi_trainable": kind,
            "seed": seed,
            "slopes_by_layer": [positions.layer_slopes(layer).tolist() for layer in range(num_layers)],
            "beta_by_layer": positions.bias_log_beta.exp().tolist() if kind == "beta" else None,
            "nats_per_token": record["validation_nats_per_token"],
            "perplexity": record["validation_perplexity"],
            "provenance": record["provenance"],
        }

    def _trial_dir(self, beta: float, seed: int) -> Path:
        return Path(self.sweep.output_dir) / "trials" / f"beta-{beta!r}-seed-{seed}"

    def _experiment(self, output_dir: Path, seed: int, **overrides: Any) -> ExperimentConfig:
        base = self.experiment
        return dataclasses.replace(
            base,
            model=dataclasses.replace(base.model, overrides={**base.model.overrides, **overrides}),
            training={**base.training, "output_dir": str(output_dir), "seed": seed},
        )


class PosthocObjective:
    """Evaluates one checkpoint with its beta replaced; nothing is trained.

    Raises:
        ValueError: The checkpoint cannot be used, or its slopes were trained, so that beta no longer decides them.
    """

    def __init__(self, sweep: "SweepConfig") -> None:
        self.sweep = sweep
        config = load_model_config(sweep.checkpoint)
        if getattr(config, "position_method", None) != "alibi" or config.alibi_trainable != "none":
            raise ValueError(f"{sweep.checkpoint}: a sweep of beta needs an AlibiGPT with alibi and untrained slopes")
        self.length_tokens = sweep.length_tokens or train_context_length(config)
        self.tokenizer = load_model_tokenizer(sweep.checkpoint)
        self.text = load_text(sweep, self.tokenizer)
        self.text.check_length(self.length_tokens)
        self.model_fingerprint = checkpoint_fingerprint(sweep.checkpoint)
        self.settings = {
            "mode": "posthoc",
            "model": self.model_fingerprint,
            "text": self.text.stream_fingerprint,
            "length_tokens": self.length_tokens,
        }

    def __call__(self, trial: Trial, beta: float) -> list[float]:
        scores = score_stream(
            self._model(beta),
            self.text.stream.input_ids,
            length_tokens=self.length_tokens,
            protocol="nonoverlapping",
            batch_tokens=self.sweep.batch_tokens,
            device=PartialState().device,
        )
        nats = perplexity_figures(scores, self.text.stream.num_bytes)["nats_per_token"]
        trial.set_user_attr("nats_per_token_by_seed", [nats])
        trial.set_user_attr("provenance", measurement_provenance(self.sweep, self.text, self.model_fingerprint))
        return [nats]

    def trained_records(self) -> list[dict[str, Any]]:
        return []

    def best_experiment(self, beta: float) -> dict[str, Any]:
        """Fine-tuning of the checkpoint with the best beta, on the text and by the settings it was trained with."""
        path = Path(self.sweep.checkpoint) / EXPERIMENT_FILE
        base = read_mapping(path) if path.exists() else {"data": {"source": self.sweep.source}, "training": {}}
        values = {
            "name": f"{Path(self.sweep.checkpoint).name}-beta-{beta:g}",
            "data": {"train_length_tokens": self.length_tokens, **base["data"]},
            "training": {**base["training"], "output_dir": str(Path(self.sweep.output_dir) / "best_run")},
            "model": {"checkpoint": self.sweep.checkpoint, "overrides": {"alibi_beta": beta}},
        }
        return dataclasses.asdict(build_config(ExperimentConfig, {**base, **values}))

    def save_best_model(self, beta: float, folder: Path) -> None:
        with _folder_beside(folder) as beside:
            save_model_folder(self._model(beta), self.tokenizer, beside)

    def _model(self, beta: float) -> Any:
        model = load_causal_lm(
            self.sweep.checkpoint,
            dtype=self.sweep.dtype,
            attn_implementation=self.sweep.attn_implementation,
        )
        model.config.alibi_beta = beta
        model.model.position_method.init_weights()
        return model


class _PruningCallback(TrainerCallback):
    """Reports each evaluation to Optuna and ends the training when the trial is to be pruned."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        self.trial.report(metrics["eval_nats_per_token"], state.global_step)
        if self.trial.should_prune():
            raise optuna.TrialPruned


@contextmanager
def _folder_beside(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``folder`` when it is complete."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    beside.mkdir(parents=True)
    try:
        yield beside
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
