"""Comparisons: variants of one experiment, trained with the same seeds and evaluated at the same lengths."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from modeling_alibi_gpt.checkpoints.load import load_causal_lm
from modeling_alibi_gpt.data.corpora import describe_documents
from modeling_alibi_gpt.data.tasks import is_task, parse_task
from modeling_alibi_gpt.evaluation.bias_record import learned_slopes
from modeling_alibi_gpt.evaluation.extrapolation import ExtrapolationConfig, run_extrapolation
from modeling_alibi_gpt.evaluation.grid import DEFAULT_MULTIPLES
from modeling_alibi_gpt.evaluation.measurement import check_held_out, load_text, load_text_documents
from modeling_alibi_gpt.evaluation.recall import RecallConfig, check_questions, run_recall
from modeling_alibi_gpt.experiments.budgets import remove_trunks, train_from_trunk
from modeling_alibi_gpt.experiments.comparison_config import ComparisonConfig
from modeling_alibi_gpt.experiments.comparison_runs import ROWS_FILE, Run, make_run
from modeling_alibi_gpt.experiments.paired import comparison_records
from modeling_alibi_gpt.experiments.runner import (
    Job,
    is_trained,
    load_experiment,
    refuse_other_text,
    run_jobs,
    shared_experiment,
)
from modeling_alibi_gpt.report.beta_budgets import predict_budget
from modeling_alibi_gpt.runtime.distributed import process_state
from modeling_alibi_gpt.runtime.record_types import AS_TRAINED
from modeling_alibi_gpt.runtime.records import Record, append_record, provenance, read_records, write_records
from modeling_alibi_gpt.training.experiment import DataSection
from modeling_alibi_gpt.training.model_setup import model_config
from modeling_alibi_gpt.training.prepared_data import named_tokenizer, prepare_data, text_identity, training_documents
from modeling_alibi_gpt.training.run_folder import RECORD_FILE


_OF_TRAINING = ("training", "bias_by_distance")


def run_comparison(config: ComparisonConfig) -> list[dict[str, Any]]:
    """Run the unfinished part of a comparison, all variants of one seed before the next, and collect its records.

    Budgets run in ascending order, and the records of each are written before the next one starts.

    Several workers that start the same command share the runs. A killed run continues from its last checkpoint and its
    last finished row, in any worker.

    Returns:
        The records written to ``comparison.jsonl``: the corpus, every training, every evaluation at every length, and
        the ``comparison`` of each with the reference.

    Raises:
        ValueError: A variant, an inference override, the text or a setting is invalid, or a run was trained on another
            text, with another tokenizer or from another model config than the others.
    """
    if process_state().num_processes > 1:
        raise ValueError(
            "a comparison runs one process per worker: start the command several times instead of launching it"
        )
    runs = _runs(config)
    text = _check_texts(runs[0])
    runs = [_with_shared_training(run, config.trainings_dir, text["documents"]) for run in runs]
    for run in runs:
        refuse_other_text(run.experiment, text)
    budgets = [
        [(place, run) for place, run in enumerate(runs, 1) if run.budget_steps == budget_steps]
        for budget_steps in config.budgets_steps or [None]
    ]
    output_dir, records, predictions = Path(config.output_dir), [], []
    for number, placed in enumerate(budgets):
        run_jobs([_job(run, f"{place}/{len(runs)}") for place, run in placed])
        for _, run in placed:  # another worker may have read another text
            refuse_other_text(run.experiment, text)
        records += _records(config, [run for _, run in placed])
        with FileLock(output_dir / ".results.lock"):  # workers may finish at the same time
            following = [run for _, run in budgets[number + 1]] if number + 1 < len(budgets) else []
            # Where the next budget was read, another worker has written these records, and perhaps later ones.
            if not any((run.output_dir / ROWS_FILE).exists() for run in following):
                if config.budgets_steps is not None:
                    next_tokens = following[0].budget_tokens if following else None
                    predictions = known_predictions(output_dir, records, next_tokens)
                write_records(output_dir / "comparison.jsonl", [*records, *predictions])
    if config.budgets_steps is not None:
        remove_trunks(output_dir, [run.experiment for run in runs])
    return [*records, *predictions]


def _job(run: Run, place: str) -> Job:
    budget = "" if run.budget_steps is None else f", {run.budget_steps} steps"
    label = f"[{place} {run.variant} seed {run.seed}{budget}]"
    return Job(
        label=label,
        folder=run.output_dir,
        run=partial(_train_and_read, run),
        is_trained=partial(is_trained, run.experiment),
    )


def _records(config: ComparisonConfig, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The records of a comparison or of one of its budgets, each of which is a separate comparison in a series."""
    name, tokens = config.name, runs[0].budget_tokens
    labels = {} if tokens is None else {"series": config.name, "budget_tokens": tokens}
    if tokens is not None:
        name = f"{name}, {tokens:,} tokens"
    records = _corpus_records(name, runs[0].experiment.data)
    records += [record | labels for run in runs for record in _collect(name, run)]
    cells = comparison_records(records, reference=config.reference, corpus=config.corpus)
    return records + [cell | labels for cell in cells]


def known_predictions(output_dir: Path, records: Sequence[Record], budget_tokens: int | None) -> list[Record]:
    """The ``prediction`` records of a comparison, after adding one for the next budget if it has none yet.

    Args:
        output_dir: Folder of the comparison.
        records: Records of the budgets that have been evaluated.
        budget_tokens: The next budget in tokens; None if all have been evaluated.
    """
    path = output_dir / "predictions.jsonl"
    known = read_records(path) if path.exists() else []
    if budget_tokens is None or any(record["budget_tokens"] == budget_tokens for record in known):
        return known
    prediction = predict_budget(records, budget_tokens)
    if prediction is None:
        return known
    append_record(path, prediction)
    return [*known, prediction]


def _runs(config: ComparisonConfig) -> list[Run]:
    """All runs of a comparison. Building them checks models and evaluations before the first run starts."""
    base = load_experiment(config.experiment, config.experiment_overrides)
    return [
        make_run(config, base, variant, seed, budget_steps)
        for budget_steps in config.budgets_steps or [None]
        for seed in config.seeds
        for variant in config.variants
    ]


def _check_texts(run: Run) -> dict[str, str]:
    """Read the training and evaluation texts of a run, and return the ``text_identity`` of the training text.

    The texts are cached, and are the same for all runs. Raises a ValueError if one cannot be read, or is too short for
    a length of the evaluation.
    """
    named_tokenizer(run.experiment)
    evaluation, trained = run.evaluations[AS_TRAINED], run.experiment.data.train_length_tokens
    lengths = evaluation.lengths_tokens or [multiple * trained for multiple in DEFAULT_MULTIPLES]
    if isinstance(evaluation, RecallConfig):
        _check_task(evaluation, str(run.experiment.data.source))
        data = prepare_data(run.experiment)
        check_questions(evaluation, data.tokenizer, lengths)
        return text_identity(run.experiment, data)
    documents = load_text_documents(evaluation)
    check_held_out(evaluation, documents, dataclasses.asdict(run.experiment.data), run.variant)
    data = prepare_data(run.experiment)
    text = load_text(evaluation, data.tokenizer)
    for length in lengths:
        text.check_length(length)
    return text_identity(run.experiment, data)


def _check_task(evaluation: RecallConfig, trained: str) -> None:
    name = parse_task(trained).name
    if evaluation.task is None or evaluation.task.name != name:
        raise ValueError(f"evaluation.source must be the task of the training, task:{name}, got {evaluation.source!r}")


def _with_shared_training(run: Run, trainings_dir: str | None, text: str) -> Run:
    experiment = shared_experiment(run.experiment, trainings_dir, text)
    models = [experiment.training["output_dir"]]
    evaluations = {name: dataclasses.replace(each, models=models) for name, each in run.evaluations.items()}
    return dataclasses.replace(run, experiment=experiment, evaluations=evaluations)


def _train_and_read(run: Run) -> str:
    record = train_from_trunk(run.experiment, run.trunk)
    for evaluation in run.evaluations.values():
        _read(evaluation)
    return f"validation perplexity {record['validation_perplexity']:.2f}"


def _read(evaluation: ExtrapolationConfig | RecallConfig) -> list[dict[str, Any]]:
    return run_recall(evaluation) if isinstance(evaluation, RecallConfig) else run_extrapolation(evaluation)


def _collect(name: str, run: Run) -> list[dict[str, Any]]:
    """The records of a run, labeled with its comparison, variant, seed and reading."""
    where = {"comparison": name, "variant": run.variant, "fields": run.fields, "seed": run.seed}
    # A shared training has a generic name.
    named = where | {"name": run.variant}
    trained = [
        record | named for record in read_records(run.model_dir / RECORD_FILE) if record["kind"] in _OF_TRAINING
    ]
    if (kind := getattr(model_config(run.experiment.model), "alibi_trainable", "none")) != "none":
        trained.append(_trained_beta_record(run, kind, trained[0]) | where)
    rows = []
    for reading, evaluation in run.evaluations.items():
        label = {"reading": reading, "name": run.variant if reading == AS_TRAINED else f"{run.variant}, {reading}"}
        rows += [row | where | label for row in _read(evaluation)]
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
    """A ``corpus`` record that lists the training documents, so that others can collect them again.

    Tasks and streams have none.
    """
    if data.streaming or is_task(data.source):
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
