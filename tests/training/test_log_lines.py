"""What a training prints."""

from typing import Any

import pytest

from modeling_alibi_gpt.training.log_lines import log_line
from modeling_alibi_gpt.training.trainer import train


@pytest.mark.parametrize("disable_tqdm", ["true", "false"])
def test_each_log_is_one_line_that_fits_a_terminal(make_experiment: Any, capsys: Any, disable_tqdm: str) -> None:
    settings = ["training.eval_strategy=steps", "training.eval_steps=2", "training.logging_steps=2"]
    train(make_experiment(*settings, "training.max_steps=4", f"training.disable_tqdm={disable_tqdm}"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split(" | ")[0] for line in lines] == ["step 2/4"] * 2 + ["step 4/4"] * 3
    for line in (lines[0], lines[2]):
        assert len(line) < 150 and "{" not in line
        for name in ("loss ", "gradient norm ", "learning rate ", " tokens/s", " GiB", "ETA "):
            assert name in line
    assert "validation loss " in lines[1] and "trained for " in lines[-1]


def test_figures_without_a_format_are_kept() -> None:
    logs = {"loss": 3.70912, "epoch": 0.1, "reward": 0.123456, "note": "x", "beta_layer_0": 1.0, "beta_layer_1": 7.123}
    expected = "step 5/10 | loss 3.7091 | reward 0.1235 | note x | beta by layer 1 7.12"
    assert log_line({**logs, "eta_seconds": 0.0}, 5, 10) == expected.replace(" | beta", " | ETA 0 s | beta")
    assert log_line({"eta_seconds": 3725.4}, 5, 10) == "step 5/10 | ETA 1 h 2 min 5 s"
