"""Objectives of a sweep: the validation loss after training with a beta, or of a checkpoint with its beta replaced."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import optuna
from optuna.trial import Trial
from transformers import TrainerCallback

from modeling_alibi_gpt.checkpoints.companions import WEIGHT_PATTERNS, companion_files, copy_files, copy_licenses
from modeling_alibi_gpt.checkpoints.load import (
    checkpoint_fingerprint,
    load_causal_lm,
    load_model_config,
    load_model_tokenizer,
    train_context_length,
)
from modeling_alibi_gpt.checkpoints.model_card import PROGRAM, loading_code, read_card, save_card
from modeling_alibi_gpt.evaluation.bias_record import learned_slopes
from modeling_alibi_gpt.evaluation.measurement import block_nats, load_text, measurement_provenance, perplexity_figures
from modeling_alibi_gpt.evaluation.scoring import score_stream
from modeling_alibi_gpt.experiments.runner import (
    is_trained,
    load_experiment,
    refuse_other_text,
    settings_without_places,
    shared_experiment,
    train_once,
)
from modeling_alibi_gpt.experiments.study import GridTrial, PruningCallback
from modeling_alibi_gpt.experiments.sweep_config import SweepConfig
from modeling_alibi_gpt.runtime.atomic import atomic_directory
from modeling_alibi_gpt.runtime.config import build_config
from modeling_alibi_gpt.runtime.distributed import process_state
from modeling_alibi_gpt.runtime.manifest import manifest_difference
from modeling_alibi_gpt.runtime.parsing import read_mapping
from modeling_alibi_gpt.runtime.records import provenance
from modeling_alibi_gpt.training.beta_schedule import set_alibi_beta
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.model_setup import model_config
from modeling_alibi_gpt.training.preflight import check_experiment
from modeling_alibi_gpt.training.prepared_data import prepare_data, text_identity
from modeling_alibi_gpt.training.resumable import remove_checkpoints
from modeling_alibi_gpt.training.run_folder import EXPERIMENT_FILE, save_model_folder


BETA = "alibi_beta"
TRAINABLE = "alibi_trainable"
logger = logging.getLogger(__name__)


class RetrainObjective:
    """Trains the experiment once per seed; a killed training resumes from its checkpoint.

    Attributes:
        settings: Settings other than beta that determine the loss; JSON values.
        trained_points: Trainings in which beta is learned, by ``alibi_trainable`` and ``seed``.
        learned_from: The beta that these start from, if the experiment sets one; else empty.

    Raises:
        ValueError: The experiment or its text is invalid, it does not use ALiBi, or it cannot be pruned.
    """

    def __init__(self, sweep: SweepConfig) -> None:
        self.sweep = sweep
        self.experiment = _with_own_model(load_experiment(sweep.experiment, sweep.experiment_overrides))
        trial = self._experiment(Path("unused"), sweep.seeds[0], beta=1.0)
        if (method := getattr(model_config(trial.model), "position_method", None)) != "alibi":
            raise ValueError(f"a sweep of beta needs position_method alibi, but the experiment has {method!r}")
        if self.experiment.alibi_beta_schedule is not None:
            raise ValueError("a sweep trains with one beta at a time: remove alibi_beta_schedule")
        if self.experiment.precision == "auto":
            raise ValueError("a sweep needs one precision for all its trainings: float32 or bfloat16, not auto")
        if check_experiment(trial).eval_strategy == "no" and sweep.pruning:
            raise ValueError("pruning needs evaluations during training: set training.eval_strategy in the experiment")
        self.trained_points = [{TRAINABLE: kind, "seed": seed} for kind in sweep.trained for seed in sweep.seeds]
        overrides = self.experiment.model.overrides
        self.learned_from = {BETA: overrides[BETA]} if BETA in overrides else {}
        self.text = text_identity(self.experiment, prepare_data(self.experiment))
        self.data_fingerprint = self.text["documents"]
        self.settings = {
            "mode": "retrain",
            "seeds": sweep.seeds,
            "experiment": self._settings(),
            "text": self.data_fingerprint,
            **{what: found for what, found in self.text.items() if what == "tokens"},
        }

    def trainings(self, params: dict[str, Any]) -> list[ExperimentConfig]:
        """The trainings of a trial with these parameters, one per seed."""
        if BETA in params:
            return [self._trial(params[BETA], seed) for seed in self.sweep.seeds]
        kind, seed = params[TRAINABLE], params["seed"]
        folder = Path(self.sweep.output_dir) / "trained" / f"{kind}-seed-{seed}"
        return [self._shared(self._experiment(folder, seed, trainable=kind))]

    def evaluate_beta(self, trial: Trial | GridTrial) -> float:
        """Validation nats per token at the beta of ``trial``, averaged over seeds; details go to its attributes."""
        # Set this first, because pruned trials have a record too.
        trial.set_user_attr("provenance", provenance(data_fingerprint=self.data_fingerprint))
        records = []
        for index, training in enumerate(self.trainings(trial.params)):
            if not is_trained(training):
                logger.info("seed %d, training %d of %d", self.sweep.seeds[index], index + 1, len(self.sweep.seeds))
            callbacks = [PruningCallback(trial)] if self.sweep.pruning and index == 0 else []
            records.append(train_and_clean(training, self.text, *callbacks))
        nats = [record["validation_nats_per_token"] for record in records]
        trial.set_user_attr("nats_per_token_by_seed", nats)
        return sum(nats) / len(nats)

    def train_beta(self, trial: Trial | GridTrial) -> float:
        """Validation nats per token with learned beta or slopes; the learned values go to the trial's attributes."""
        [experiment] = self.trainings(trial.params)
        record = train_and_clean(experiment, self.text)
        for name, values in learned_slopes(load_causal_lm(experiment.training["output_dir"])).items():
            trial.set_user_attr(name, values)
        trial.set_user_attr("provenance", record["provenance"])
        return record["validation_nats_per_token"]

    def best_experiment(self, beta: float) -> dict[str, Any]:
        """A complete experiment for ``alibi-gpt train``: exactly the training of the first seed."""
        return dataclasses.asdict(
            self._experiment(Path(self.sweep.output_dir) / "best_run", self.sweep.seeds[0], beta)
        )

    def save_best_model(self, beta: float, folder: Path) -> bool:
        """Write the model of the best beta for ``from_pretrained``; False if only another machine has it."""
        trial = self._trial(beta, self.sweep.seeds[0])
        if not is_trained(trial):
            return False
        copy_model(Path(trial.training["output_dir"]), folder)
        return True

    def _settings(self) -> dict[str, Any]:
        """The experiment without what each trial sets, and without paths, which differ between machines."""
        settings = settings_without_places(self.experiment)
        settings["training"].pop("seed", None)
        for key in (BETA, TRAINABLE):
            settings["model"]["overrides"].pop(key, None)
        return settings

    def _trial(self, beta: float, seed: int) -> ExperimentConfig:
        folder = Path(self.sweep.output_dir) / "trials" / f"beta-{beta!r}-seed-{seed}"
        return self._shared(self._experiment(folder, seed, beta))

    def _shared(self, experiment: ExperimentConfig) -> ExperimentConfig:
        return shared_experiment(experiment, self.sweep.trainings_dir, self.data_fingerprint)

    def _experiment(
        self, output_dir: Path, seed: int, beta: float | None = None, trainable: str = "none"
    ) -> ExperimentConfig:
        base = self.experiment
        overrides = {**base.model.overrides, TRAINABLE: trainable} | ({} if beta is None else {BETA: beta})
        return dataclasses.replace(
            base,
            model=dataclasses.replace(base.model, overrides=overrides),
            position_learning_rate=1.0 if trainable == "none" else base.position_learning_rate,
            training={**base.training, "output_dir": str(output_dir), "seed": seed},
        )


class PosthocObjective:
    """Evaluates one checkpoint with its beta replaced; nothing is trained. Has what ``RetrainObjective`` has.

    Raises:
        ValueError: The checkpoint or the text cannot be used, or its slopes were trained, so that they no longer
            depend on beta.
    """

    def __init__(self, sweep: SweepConfig) -> None:
        self.sweep = sweep
        self.trained_points: list[dict[str, Any]] = []
        self.learned_from: dict[str, Any] = {}
        config = load_model_config(sweep.checkpoint)
        if getattr(config, "position_method", None) != "alibi" or config.alibi_trainable != "none":
            raise ValueError(f"{sweep.checkpoint}: a sweep of beta needs an AlibiGPT with ALiBi and untrained slopes")
        self.length_tokens = train_context_length(config) if sweep.length_tokens is None else sweep.length_tokens
        self.tokenizer = load_model_tokenizer(sweep.checkpoint)
        self.text = load_text(sweep, self.tokenizer, sweep.checkpoint)
        self.text.check_length(self.length_tokens)
        self.model = load_causal_lm(sweep.checkpoint, dtype=sweep.dtype, attn_implementation=sweep.attn_implementation)
        self.model_fingerprint = checkpoint_fingerprint(sweep.checkpoint)
        self.settings = {
            "mode": "posthoc",
            "model": self.model_fingerprint,
            "text": self.text.stream_fingerprint,
            "length_tokens": self.length_tokens,
            "dtype": sweep.dtype,
        }

    def trainings(self, params: dict[str, Any]) -> list[ExperimentConfig]:
        return []

    def evaluate_beta(self, trial: Trial | GridTrial) -> float:
        set_alibi_beta(self.model, trial.params[BETA])
        scores = score_stream(
            self.model,
            self.text.stream.input_ids,
            length_tokens=self.length_tokens,
            protocol="nonoverlapping",
            batch_tokens=self.sweep.batch_tokens,
            device=process_state().device,
        )
        nats = perplexity_figures(scores, self.text.stream.num_bytes)["nats_per_token"]
        trial.set_user_attr("nats_per_token_by_seed", [nats])
        trial.set_user_attr("nats_per_token_by_block", block_nats(scores))
        trial.set_user_attr("provenance", measurement_provenance(self.sweep, self.text, self.model_fingerprint))
        return nats

    def train_beta(self, trial: Trial | GridTrial) -> float:
        raise AssertionError("a sweep without training learns no beta")

    def best_experiment(self, beta: float) -> dict[str, Any]:
        """Fine-tuning of the checkpoint at the best beta, with the text and settings that it was trained with."""
        path = Path(self.sweep.checkpoint) / EXPERIMENT_FILE
        of_text = ("source", "validation_fraction", "validation_unit", "text_column")
        text = {key: getattr(self.sweep, key) for key in of_text}
        base = read_mapping(path) if path.exists() else {"data": text, "training": {}}
        values = {
            "name": f"{Path(self.sweep.checkpoint).name}-beta-{beta:g}",
            "model": {"checkpoint": self.sweep.checkpoint, "overrides": {BETA: beta}},
            "data": {"train_length_tokens": self.length_tokens, **base["data"], "tokenizer": None},
            "training": {**base["training"], "output_dir": str(Path(self.sweep.output_dir) / "best_run")},
            "alibi_beta_schedule": None,
        }
        return dataclasses.asdict(build_config(ExperimentConfig, {**base, **values}))

    def save_best_model(self, beta: float, folder: Path) -> bool:
        model = load_causal_lm(self.sweep.checkpoint)
        set_alibi_beta(model, beta)
        with atomic_directory(folder, replaces=True) as tmp_path:
            save_model_folder(model, self.tokenizer, tmp_path)
            save_card(
                tmp_path,
                read_card(Path(self.sweep.checkpoint)),
                summary=f"With `alibi_beta` {beta:g}, selected after training by {PROGRAM}.",
                usage=loading_code("alibi_gpt"),
            )
            copy_licenses(Path(self.sweep.checkpoint), tmp_path)
        return True


Objective: TypeAlias = RetrainObjective | PosthocObjective


def copy_model(source: Path, folder: Path) -> None:
    """Copy only the model of a finished training; other files in its folder may contain private paths.

    Raises:
        ValueError: The model has changed since it was saved.
    """
    if difference := manifest_difference(source):
        raise ValueError(
            f"{source} is the best trial, but its model is damaged ({difference}): restore the file, or train it "
            "again with 'alibi-gpt train' and the experiment in best.json"
        )
    weights = [path for pattern in WEIGHT_PATTERNS for path in source.glob(pattern)]
    with atomic_directory(folder, replaces=True) as tmp_path:
        copy_files([source / "config.json", *weights, *companion_files(source)], source, tmp_path)


def _with_own_model(experiment: ExperimentConfig) -> ExperimentConfig:
    """The experiment with the contents of its model config, so that later changes to that file have no effect."""
    if not isinstance(experiment.model.config, str):
        return experiment
    model = dataclasses.replace(experiment.model, config=read_mapping(experiment.model.config))
    return dataclasses.replace(experiment, model=model)


def train_and_clean(
    experiment: ExperimentConfig, text: Mapping[str, str], *callbacks: TrainerCallback
) -> dict[str, Any]:
    """Train or resume on the text of this identity, and delete the checkpoints when they are no longer needed."""
    folder = Path(experiment.training["output_dir"])
    try:
        record = train_once(experiment, callbacks)
    except optuna.TrialPruned:
        remove_checkpoints(folder)
        raise
    remove_checkpoints(folder)
    refuse_other_text(experiment, text)
    return record
