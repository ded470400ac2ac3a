"""One short line per log of a training, where Trainer prints a dict."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_callback import CallbackHandler


# "eval_loss" weighs batches alike; "eval_nats_per_token" weighs tokens alike.
_UNUSED = (
    *("total_flos", "epoch", "train_samples_per_second", "train_steps_per_second", "train_tokens_per_second"),
    *("eval_loss", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"),
)
_FORMATS: dict[str, Callable[[Any], str]] = {
    "loss": lambda value: f"loss {value:.4f}",
    "eval_nats_per_token": lambda value: f"validation loss {value:.4f}",
    "train_loss": lambda value: f"mean training loss {value:.4f}",
    "grad_norm": lambda value: f"gradient norm {value:.2g}",
    "learning_rate": lambda value: f"learning rate {value:.2g}",
    "num_input_tokens_seen": lambda value: f"{value:,} tokens",
    "tokens_per_second": lambda value: f"{value:,.0f} tokens/s",
    "mfu": lambda value: f"MFU {value:.1%}",
    "memory_gib": lambda value: f"{value:.2f} GiB",
    "eta_seconds": lambda value: f"ETA {_duration(value)}",
    "train_runtime": lambda value: f"trained for {_duration(value)}",
}


def log_line(logs: Mapping[str, Any], step: int, num_steps: int) -> str:
    """``step 20/100 | loss 3.7091 | gradient norm 0.64 | ...``; figures without a format of their own keep their name.

    Args:
        logs: What Trainer logs.
        step: Optimizer steps so far.
        num_steps: Those of the whole training.
    """
    betas = [f"{value:.3g}" for name, value in logs.items() if name.startswith("beta_layer_")]
    parts = [
        _FORMATS.get(name, partial(_plain, name))(value)
        for name, value in logs.items()
        if name not in _UNUSED and not name.startswith("beta_layer_")
    ]
    return " | ".join([f"step {step}/{num_steps}", *parts, *([f"beta by layer {' '.join(betas)}"] if betas else [])])


def print_log_lines(handler: CallbackHandler) -> None:
    """Replace Trainer's own callback that prints logs; that of notebooks stays."""
    lines = {ProgressCallback: _Progress, PrinterCallback: _Printer}
    handler.callbacks = [lines[type(found)]() if type(found) in lines else found for found in handler.callbacks]


class _Progress(ProgressCallback):
    """A progress bar, and the lines above it."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(log_line(logs, state.global_step, state.max_steps))


class _Printer(PrinterCallback):
    """The lines alone, where ``disable_tqdm`` is set."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_local_process_zero:
            tqdm.write(log_line(logs, state.global_step, state.max_steps))


def _plain(name: str, value: Any) -> str:
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def _duration(seconds: float) -> str:
    """To the second: ``1 h 2 min 5 s``."""
    hours, rest = divmod(round(seconds), 3600)
    parts = [(hours, "h"), (rest // 60, "min"), (rest % 60, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"
