"""A Trainer whose result depends neither on the number of processes nor on interruptions."""

import math
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Sampler, SequentialSampler
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from modeling_alibi_gpt.data.streaming import StreamedBlocks
from modeling_alibi_gpt.runtime.manifest import write_manifest
from modeling_alibi_gpt.training.length_schedule import cut_batch
from modeling_alibi_gpt.training.optimizer import set_position_learning_rate
from modeling_alibi_gpt.training.resumable import trainer_state


class DeterministicTrainer(Trainer):
    """Trainer with full global batches, atomic checkpoints and a separate learning rate for positions.

    Args:
        *args: Arguments of Trainer.
        position_learning_rate: Multiple of the learning rate for the parameters of positions, in the optimizer that
            Trainer makes.
        loss_chunk_tokens: Tokens whose logits are in memory at once during training; None is the whole batch.
        length_schedule: Maps the number of finished steps to the length in tokens of the next step; None keeps the
            length of the sequences. A shorter length cuts every sequence of a batch into equal parts, so the tokens of
            a step and their order do not change.
        **kwargs: Keyword arguments of Trainer.

    Raises:
        ValueError: There is a ``position_learning_rate`` beside an optimizer of the caller's.
    """

    def __init__(
        self,
        *args: Any,
        position_learning_rate: float = 1.0,
        loss_chunk_tokens: int | None = None,
        length_schedule: Callable[[int], int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.optimizer is not None and position_learning_rate != 1.0:
            raise ValueError(
                f"position_learning_rate {position_learning_rate:g} would have no effect on the optimizer that was "
                "given: expected 1, or no optimizer; set_position_learning_rate gives your own one such a rate"
            )
        self.position_learning_rate = position_learning_rate
        self.loss_chunk_tokens = loss_chunk_tokens
        self.length_schedule = length_schedule

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's optimizer, with separate parameter groups for positions if their learning rate differs."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            set_position_learning_rate(optimizer, self.model if model is None else model, self.position_learning_rate)
        return optimizer

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | list[int] | None:
        """Sequences in the order of Trainer, padded to full global batches: by a second shuffle, or by the first ones.

        Trainer ends an epoch with a smaller batch, which several processes fill up with different sequences.
        """
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, RandomSampler | SequentialSampler):
            return sampler
        args, dataset = self.args, sampler.data_source
        batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        num_samples = math.ceil(len(dataset) / batch_size) * batch_size
        if isinstance(sampler, RandomSampler):
            return RandomSampler(dataset, num_samples=num_samples)
        return list(islice(cycle(range(len(dataset))), num_samples))

    def get_train_dataloader(self) -> DataLoader:
        """Trainer's loader. A stream already knows its process, so it is not sharded again."""
        if not isinstance(self.train_dataset, StreamedBlocks):
            return super().get_train_dataloader()
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            generator=torch.Generator(),  # a loader draws a number, which must not advance the random state of dropout
        )

    def get_batch_samples(self, epoch_iterator: Iterator, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """The batches of a step, cut to its length before their labels are counted."""
        if self.length_schedule is not None:
            length = self.length_schedule(self.state.global_step)
            epoch_iterator = (cut_batch(batch, length) for batch in epoch_iterator)
        return super().get_batch_samples(epoch_iterator, *args, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Trainer's loss, in chunks of tokens if requested; evaluations need all logits."""
        if self.loss_chunk_tokens is not None and model.training:
            inputs = {**inputs, "loss_chunk_tokens": self.loss_chunk_tokens}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without advancing the random state, which a checkpoint saved before the evaluation cannot know."""
        with torch.random.fork_rng(devices=[]):
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trainer's log. Every process has the same loss, and saves only after it is logged.

        Raises:
            ValueError: The training has diverged: its loss is not finite.
        """
        super().log(logs, *args, **kwargs)
        if not math.isfinite(loss := logs.get("loss", 0.0)):
            raise ValueError(
                f"the loss is {loss} at step {self.state.global_step}: expected a finite loss; try a lower learning "
                "rate"
            )

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP or DeepSpeed shards the parameters over the processes."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def whole_model(self, model_class: type[PreTrainedModel]) -> PreTrainedModel | None:
        """The model with all of its parameters in the main process, None in the others; every process must call this.

        An unsharded model is returned as it is. A sharded one is gathered in the memory of the main process.

        Args:
            model_class: Class of the model before it was sharded.
        """
        if not self.is_sharded:
            return self.model if self.is_world_process_zero() else None
        state_dict = self.accelerator.get_state_dict(self.model_wrapped)
        if not self.is_world_process_zero():
            return None
        # Activation checkpointing inserts a wrapper into the names.
        state_dict = {name.replace("_checkpoint_wrapped_module.", ""): weight for name, weight in state_dict.items()}
        model = model_class(self.model.config)  # from_pretrained would wait for other processes
        model.load_state_dict(state_dict)
        return model

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the manifest, which marks a complete checkpoint, last, and only then delete older checkpoints.

        Trainer would delete them before that, so a kill in between could leave no complete checkpoint.
        """
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            run_dir = self._get_output_dir(trial=trial)
            checkpoint = Path(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            if self.is_sharded:  # Trainer saves shards without the config, which loading merged shards needs
                self.model.config.save_pretrained(checkpoint)
            write_manifest(checkpoint)
            rotate_checkpoints(run_dir, limit, self.state.best_model_checkpoint, use_mtime=True)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save random states and stream positions in all processes before the manifest, which lists them."""
        super()._save_rng_state(output_dir)
        if isinstance(self.train_dataset, StreamedBlocks):
            self.train_dataset.save(Path(output_dir), self.state.global_step)
        self.accelerator.wait_for_everyone()

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, num_epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """Find the checkpoint of the best model in the folder of the run, which may have been moved."""
        progress = super()._init_training_state(max_steps, steps_per_epoch, num_epochs, checkpoint, trial)
        if checkpoint is not None:
            best = Path(str(trainer_state(Path(checkpoint)).get("best_model_checkpoint")))
            if (moved := Path(self.args.output_dir, best.name)).is_dir():
                self.state.best_model_checkpoint = str(moved)
        return progress

    def _run_epoch(self, **kwargs: Any) -> None:
        """Train only if steps are left: from a checkpoint of the last step, Trainer would train one more."""
        if self.state.global_step < self.state.max_steps and not self._has_stopped_early():
            super()._run_epoch(**kwargs)

    def _has_stopped_early(self) -> bool:
        early = [found for found in self.callback_handler.callbacks if isinstance(found, EarlyStoppingCallback)]
        return any(found.early_stopping_patience_counter >= found.early_stopping_patience for found in early)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Do not warn about tied weights, which a checkpoint stores once under their other name."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)
