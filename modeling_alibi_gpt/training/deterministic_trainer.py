"""transformers.Trainer whose result depends neither on the number of processes nor on how often it was killed."""

import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from modeling_alibi_gpt.data.streaming import StreamedBlocks
from modeling_alibi_gpt.runtime.manifest import write_manifest
from modeling_alibi_gpt.training.experiment import check_position_learning_rate
from modeling_alibi_gpt.training.optimizer import set_position_learning_rate


class DeterministicTrainer(Trainer):
    """Trainer with whole global batches, whole checkpoints, no step beyond the last and a learning rate for positions.

    Args:
        *args: What Trainer takes.
        position_learning_rate: Multiple of the learning rate at which the parameters of positions train.
        **kwargs: What Trainer takes.
    """

    def __init__(self, *args: Any, position_learning_rate: float = 1.0, **kwargs: Any) -> None:
        check_position_learning_rate(position_learning_rate)
        super().__init__(*args, **kwargs)
        self.position_learning_rate = position_learning_rate

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's own optimizer, with groups of their own for positions where their learning rate is another."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            set_position_learning_rate(optimizer, self.model if model is None else model, self.position_learning_rate)
        return optimizer

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Shuffled sequences, filled up to whole global batches by sequences of a second shuffle.

        Trainer ends an epoch with a smaller batch, which several processes fill up on their own, each with others.
        """
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, RandomSampler):
            return sampler
        args, dataset = self.args, sampler.data_source
        batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return RandomSampler(dataset, num_samples=math.ceil(len(dataset) / batch_size) * batch_size)

    def get_train_dataloader(self) -> DataLoader:
        """Trainer's own; a stream, which knows its processes, is read by this one as it is."""
        if not isinstance(self.train_dataset, StreamedBlocks):
            return super().get_train_dataloader()
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            generator=torch.Generator(),  # a loader draws a number, which must not be of the random state of dropout
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Leave the random state alone: a checkpoint saved before an evaluation does not know what that draws."""
        with torch.random.fork_rng(devices=[]):
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The manifest, which marks a whole checkpoint, comes last, and only then do older checkpoints go.

        Trainer itself would let them go before: a kill in between would leave none that is whole.
        """
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            run_dir = self._get_output_dir(trial=trial)
            write_manifest(Path(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"))
            rotate_checkpoints(run_dir, limit, self.state.best_model_checkpoint, use_mtime=True)

    def _save_rng_state(self, output_dir: str) -> None:
        """Wait for the random states and places in the text of all processes, which the manifest lists."""
        super()._save_rng_state(output_dir)
        if isinstance(self.train_dataset, StreamedBlocks):
            self.train_dataset.save(Path(output_dir), self.state.global_step)
        self.accelerator.wait_for_everyone()

    def _run_epoch(self, **kwargs: Any) -> None:
        """Nothing where the checkpoint is of the last step already: Trainer would train one more."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**kwargs)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Nothing about tied weights, which a checkpoint holds once under their other name."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)
