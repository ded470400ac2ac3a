"""Measure perplexity at milestones during training, at the training length and beyond."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modeling_alibi_gpt.checkpoints.load import position_method
from modeling_alibi_gpt.data.tokenization import TokenStream
from modeling_alibi_gpt.evaluation.measurement import perplexity_figures
from modeling_alibi_gpt.evaluation.scoring import score_stream
from modeling_alibi_gpt.evaluation.windows import PROTOCOLS, resolve_stride
from modeling_alibi_gpt.runtime.distributed import process_state
from modeling_alibi_gpt.runtime.records import append_record, provenance, read_records
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.run_folder import MILESTONES_FILE


class MilestoneCallback(TrainerCallback):
    """Evaluates the validation text at the steps of ``config.milestones``, with a record per protocol and length.

    A resumed run passes some steps again, but does not repeat measurements that are already written. The random state
    and the weights do not change.

    Args:
        config: The experiment, with milestones.
        stream: Its validation text.
        data_fingerprint: Fingerprint of its documents.

    Raises:
        ValueError: The validation text is shorter than a window.
    """

    def __init__(self, config: ExperimentConfig, stream: TokenStream, data_fingerprint: str) -> None:
        assert config.milestones is not None
        self.config, self.milestones, self.stream = config, config.milestones, stream
        seed = config.training.get("seed", TrainingArguments.seed)
        self.provenance = provenance(seed=seed, data_fingerprint=data_fingerprint)
        self.measured = _measured_cells(config)
        for length in self.milestones.lengths_tokens:
            if len(stream.input_ids) <= length:
                raise ValueError(
                    f"milestones.lengths_tokens: the validation text has {len(stream.input_ids)} tokens, but "
                    f"a window of {length} needs {length + 1}"
                )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._measure(args, state, kwargs["model"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._measure(args, state, kwargs["model"])

    def _measure(self, args: TrainingArguments, state: TrainerState, model: PreTrainedModel) -> None:
        if state.global_step not in self.milestones.steps:
            return
        for protocol in PROTOCOLS:
            for length in self.milestones.lengths_tokens:
                if (state.global_step, protocol, length) in self.measured:
                    continue
                record = self._record(model, state, protocol, length)
                if process_state().is_main_process:
                    append_record(Path(args.output_dir) / MILESTONES_FILE, record)

    def _record(self, model: PreTrainedModel, state: TrainerState, protocol: str, length: int) -> dict[str, Any]:
        try:
            scores = score_stream(model, self.stream.input_ids, length_tokens=length, protocol=protocol)
            figures = {**perplexity_figures(scores, self.stream.num_bytes), "error": None}
        except ValueError as error:  # failing beyond a position table is a result
            figures = {"nats_per_token": None, "perplexity": None, "error": str(error)}
        return {
            "kind": "milestone",
            "name": self.config.name,
            "position_method": position_method(model.config),
            "step": state.global_step,
            "num_train_tokens": int(state.num_input_tokens_seen),
            "train_length_tokens": self.config.data.train_length_tokens,
            "protocol": protocol,
            "length_tokens": length,
            "stride_tokens": resolve_stride(length, protocol),
            **figures,
            "provenance": self.provenance,
        }


def _measured_cells(config: ExperimentConfig) -> set[tuple[int, str, int]]:
    """Step, protocol and length of the records that an interrupted run has left."""
    path = Path(config.training["output_dir"]) / MILESTONES_FILE
    rows = read_records(path) if path.exists() else []
    return {(row["step"], row["protocol"], row["length_tokens"]) for row in rows}
