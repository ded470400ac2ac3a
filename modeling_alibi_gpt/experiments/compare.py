"""Variants of one experiment, trained with the same seeds and read at the same lengths: what curves rest on."""

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from modeling_alibi_gpt.checkpoints.load import load_causal_lm
from modeling_alibi_gpt.checkpoints.model_size import weight_shapes
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.data.corpora import describe_documents, load_documents
from modeling_alibi_gpt.evaluation.bias_record import learned_slopes
from modeling_alibi_gpt.evaluation.extrapolation import ExtrapolationConfig, run_extrapolation
from modeling_alibi_gpt.experiments.paired import comparison_records
from modeling_alibi_gpt.experiments.run_names import check_names, run_folder_name
from modeling_alibi_gpt.experiments.runner import Job, run_jobs, shared_experiment, train_once
from modeling_alibi_gpt.runtime.config import build_config, config_dataclass, convert_value, load_config
from modeling_alibi_gpt.runtime.distributed import process_state
from modeling_alibi_gpt.runtime.record_types import AS_TRAINED
from modeling_alibi_gpt.runtime.records import provenance, read_records, write_records
from modeling_alibi_gpt.training.experiment import DataSection, ExperimentConfig, ModelSection
from modeling_alibi_gpt.training.model_setup import laid_over, model_config
from modeling_alibi_gpt.training.preflight import check_experiment
from modeling_alibi_gpt.training.prepared_data import named_tokenizer, prepare_data, training_documents
from modeling_alibi_gpt.training.run_folder import RECORD_FILE


ROWS_FILE = "extrapolation.jsonl"
_OF_RUNS = {"models", "names", "overrides", "output"}
_OF_RUN = {"output_dir", "seed"}
_POSITION_RATE = "position_learning_rate"
_TRAINING_PREFIX = "training."
_OF_TRAINING = ("training", "bias_by_distance")


@config_dataclass
class ComparisonConfig:
    """What ``scripts/compare.py`` trains and reads."""

    name: str
    """Of the comparison, in its records."""
    corpus: str | None = None
    """Name of the text that was learned, for tables and figures; by default ``name``."""
    experiment: str | dict[str, Any]
    """Path of the experiment that every run starts from, or the mapping itself."""
    experiment_overrides: list[str] = field(default_factory=list)
    """``a.b=value`` assignments laid over it."""
    variants: dict[str, dict[str, Any] | None]
    """Name to fields of ``AlibiGPTConfig``: what sets one training apart from another. Beside them a variant may set
    ``position_learning_rate`` and any ``training.KEY`` of its experiment, such as ``training.learning_rate``.
    """
    readings: dict[str, dict[str, dict[str, Any] | None] | None] = field(default_factory=dict)
    """Name of a variant to names of readings to fields of ``AlibiGPTConfig`` that its trained model is given without
    training, such as an ``alibi_scaling``. As trained it is read in any case.
    """
    reference: str
    """The variant that the others are compared with, seed by seed."""
    seeds: list[int]
    """Training seeds, the same for every variant."""
    evaluation: dict[str, Any]
    """Settings of ``ExtrapolationConfig``: text, lengths, protocols."""
    output_dir: str
    """Gets a folder for each run, and ``comparison.jsonl``."""
    trainings_dir: str | None = None
    """Folder of trainings, each named by its content, that comparisons and sweeps share.

    What one of them has trained, with the same settings, text and seed, the others find. Null keeps the trainings of
    this comparison in ``output_dir``, for itself.
    """

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be one or more, each once, got {self.seeds}")
        for name in [self.reference, *self.readings]:
            if name not in self.variants:
                raise ValueError(f"{name!r} is no variant; there are {', '.join(self.variants)}")
        check_names("variants", self.variants)
        for variant, readings in self.readings.items():
            check_names(f"readings.{variant}", readings or {})
            if AS_TRAINED in (readings or {}):
                raise ValueError(f"readings.{variant}: {AS_TRAINED!r} is what every model is read as in any case")
        if "source" not in self.evaluation:
            raise ValueError("evaluation.source is missing: say which text the models read")
        for key in _OF_RUNS & self.evaluation.keys():
            raise ValueError(f"evaluation.{key} cannot be set: it follows from variants, readings and output_dir")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One variant with one seed: a training, and the ways in which its model is read.

    Attributes:
        variant: Its name.
        fields: All that the variant sets, of the model and of its training.
        seed: Of the training.
        output_dir: Where its model is read to; it lies there too unless trainings are shared.
        experiment: The training.
        evaluations: How its model is read, by the names of the readings.
    """

    variant: str
    fields: dict[str, Any]
    seed: int
    output_dir: Path
    experiment: ExperimentConfig
    evaluations: dict[str, ExtrapolationConfig]

    @property
    def model_dir(self) -> Path:
        return Path(self.experiment.training["output_dir"])


def run_comparison(config: ComparisonConfig) -> list[dict[str, Any]]:
    """Run what is left of a comparison, all variants of one seed before the next, and collect its records.

    Start the same command several times and the runs are shared out. A killed run goes on from its last checkpoint
    and its last finished row, in any worker.

    Returns:
        The records written to ``comparison.jsonl``: of the corpus, of every training, of every reading at every
        length, and the ``comparison`` of each with the reference.

    Raises:
        ValueError: A variant, a reading, the text or a setting cannot be used.
    """
    if process_state().num_processes > 1:
        raise ValueError("a comparison runs one process a worker: start the command several times, do not launch it")
    runs = _runs(config)
    text = _check_texts(runs[0])
    runs = [_with_shared_training(run, config.trainings_dir, text) for run in runs]
    jobs = [
        Job(
            label=f"[{place}/{len(runs)} {run.variant} seed {run.seed}]",
            folder=run.output_dir,
            run=partial(_train_and_read, run),
        )
        for place, run in enumerate(runs, 1)
    ]
    run_jobs(jobs)
    records = _corpus_records(config.name, runs[0].experiment.data)
    records += [record for run in runs for record in _collect(config.name, run)]
    records += comparison_records(records, reference=config.reference, corpus=config.corpus)
    output_dir = Path(config.output_dir)
    with FileLock(output_dir / ".results.lock"):  # workers end at the same time
        write_records(output_dir / "comparison.jsonl", records)
    return records


def _runs(config: ComparisonConfig) -> list[Run]:
    """Every run of a comparison; what it says of models and readings is checked before the first one starts."""
    if isinstance(config.experiment, str):
        base = load_config(ExperimentConfig, config.experiment, config.experiment_overrides)
    else:
        base = load_config(ExperimentConfig, None, config.experiment_overrides, **config.experiment)
    runs = [_make_run(config, base, variant, seed) for seed in config.seeds for variant in config.variants]
    for run in runs:
        check_experiment(run.experiment)
    return runs


def _check_texts(run: Run) -> str:
    """The fingerprint of the text that is learned, once both texts of a run have been read.

    They are the same for all runs, and cached. Raises a ValueError where one cannot be read.
    """
    named_tokenizer(run.experiment)
    evaluation = run.evaluations[AS_TRAINED]
    load_documents(
        evaluation.source,
        evaluation.text_split,
        validation_fraction=evaluation.validation_fraction,
        text_column=evaluation.text_column,
    )
    return prepare_data(run.experiment).fingerprint


def _with_shared_training(run: Run, trainings_dir: str | None, text: str) -> Run:
    experiment = shared_experiment(run.experiment, trainings_dir, text)
    models = [experiment.training["output_dir"]]
    evaluations = {name: dataclasses.replace(each, models=models) for name, each in run.evaluations.items()}
    return dataclasses.replace(run, experiment=experiment, evaluations=evaluations)


def _make_run(config: ComparisonConfig, base: ExperimentConfig, variant: str, seed: int) -> Run:
    fields = config.variants[variant] or {}
    folder = Path(config.output_dir) / run_folder_name(variant, seed)
    base = _with_settings(base, variant, fields)
    training = {**base.training, "seed": seed, "output_dir": str(folder)}
    model = _with_fields(base.model, {key: value for key, value in fields.items() if not _is_setting(key)})
    readings = {AS_TRAINED: {}, **(config.readings.get(variant) or {})}
    readings = {name: overrides or {} for name, overrides in readings.items()}
    trained = model_config(model)
    for name, overrides in readings.items():
        read = model_config(_with_fields(model, overrides))
        if isinstance(read, AlibiGPTConfig) and weight_shapes(read) != weight_shapes(trained):
            raise ValueError(f"readings.{variant}.{name} needs other weights than those trained: {overrides}")
    evaluations = {
        name: {"models": [str(folder)], "names": [name], "overrides": overrides, "output": str(folder / ROWS_FILE)}
        for name, overrides in readings.items()
    }
    return Run(
        variant=variant,
        fields=fields,
        seed=seed,
        output_dir=folder,
        experiment=dataclasses.replace(base, name=variant, model=model, training=training),
        evaluations={
            name: build_config(ExtrapolationConfig, {**config.evaluation, **named}, "evaluation.")
            for name, named in evaluations.items()
        },
    )


def _is_setting(key: str) -> bool:
    """Whether a key of a variant is the experiment's, and no field of its model."""
    return key == _POSITION_RATE or key.startswith(_TRAINING_PREFIX)


def _with_settings(base: ExperimentConfig, variant: str, fields: dict[str, Any]) -> ExperimentConfig:
    training = {
        key.removeprefix(_TRAINING_PREFIX): value for key, value in fields.items() if key.startswith(_TRAINING_PREFIX)
    }
    for key in _OF_RUN & training.keys():
        raise ValueError(f"variants.{variant}: training.{key} cannot be set: it follows from seeds and output_dir")
    rate = fields.get(_POSITION_RATE, base.position_learning_rate)
    rate = convert_value(rate, float, f"variants.{variant}.{_POSITION_RATE}")
    return dataclasses.replace(base, training={**base.training, **training}, position_learning_rate=rate)


def _with_fields(section: ModelSection, fields: dict[str, Any]) -> ModelSection:
    return dataclasses.replace(section, overrides=laid_over(section.overrides, fields))


def _train_and_read(run: Run) -> str:
    record = train_once(run.experiment)
    for evaluation in run.evaluations.values():
        run_extrapolation(evaluation)
    return f"validation perplexity {record['validation_perplexity']:.2f}"


def _collect(name: str, run: Run) -> list[dict[str, Any]]:
    """The records of a run, each with the comparison, the variant, the seed and the reading that it belongs to."""
    where = {"comparison": name, "variant": run.variant, "fields": run.fields, "seed": run.seed}
    # A training that is shared has no name of its own.
    named = where | {"name": run.variant}
    trained = [
        record | named for record in read_records(run.model_dir / RECORD_FILE) if record["kind"] in _OF_TRAINING
    ]
    if (kind := getattr(model_config(run.experiment.model), "alibi_trainable", "none")) != "none":
        trained.append(_trained_beta_record(run, kind, trained[0]) | where)
    rows = []
    for reading, evaluation in run.evaluations.items():
        label = {"reading": reading, "name": run.variant if reading == AS_TRAINED else f"{run.variant}, {reading}"}
        rows += [row | where | label for row in run_extrapolation(evaluation)]
    return [*trained, *rows]


def _trained_beta_record(run: Run, kind: str, training: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "trained_beta",
        "alibi_trainable": kind,
        **learned_slopes(load_causal_lm(run.model_dir)),
        "nats_per_token": training["validation_nats_per_token"],
        "perplexity": training["validation_perplexity"],
        "provenance": training["provenance"],
    }


def _corpus_records(name: str, data: DataSection) -> list[dict[str, Any]]:
    """One ``corpus`` record: which documents were learned, so that anyone can gather them again; none of a stream."""
    if data.streaming:
        return []
    documents = training_documents(data)
    return [
        {
            "kind": "corpus",
            "comparison": name,
            "source": data.source_name,
            **describe_documents(documents),
            "documents": list(dict.fromkeys(documents["name"])),
            "provenance": provenance(),
        }
    ]
