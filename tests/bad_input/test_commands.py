"""What the cases stand on: good inputs are taken, and a command in a process of its own refuses in the same way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bad_input.loading import LOADING
from tests.bad_input.refusals import SCRIPTS, Inputs, edit_json, script
from tests.bad_input.test_checkpoints import INDEX, _first_shard


# An AlibiGPT of the default fields is neither of these.
OTHER_ARCHITECTURES = ("to_bloom", "to_mpt")
# Mostly imports. Other processes on the core change the processor time of the same work by half.
MAX_TIMES = 2


@pytest.mark.parametrize("command", [name for name in LOADING if name not in OTHER_ARCHITECTURES])
def test_good_inputs_are_taken(command: str, tmp_path: Path, inputs: Inputs) -> None:
    name, arguments = LOADING[command]
    assert script(name).main(arguments(inputs.sharded, tmp_path, inputs)) == 0


def test_a_process_of_its_own_refuses_soon_after_its_imports(tmp_path: Path, inputs: Inputs) -> None:
    """The time is that of the processor, against what the same command takes to refuse its very first key."""
    model = tmp_path / "model"
    subprocess.run(["cp", "-r", str(inputs.sharded), str(model)], check=True)
    baseline, _ = _refusal(["evaluate", "--set", "nonsense=1"], tmp_path)
    edit_json(model / "config.json", num_hidden_layers=10**9)
    seconds, line = _refusal(["evaluate", "--model", str(model), "--data", inputs.source], tmp_path)
    assert "of memory, but only" in line and seconds < MAX_TIMES * baseline
    edit_json(model / "config.json", num_hidden_layers=2)
    _first_shard("../../secret.safetensors", model)
    seconds, line = _refusal(["evaluate", "--model", str(model), "--data", inputs.source], tmp_path)
    assert f"{INDEX} names '../../secret.safetensors'" in line and seconds < MAX_TIMES * baseline


def _refusal(command: list[str], folder: Path) -> tuple[float, str]:
    """Seconds of processor time, and the one line."""
    before = os.times()
    name, *arguments = command
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / f"{name}.py"), *arguments], cwd=folder, capture_output=True, text=True
    )
    after = os.times()
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    seconds = after.children_user - before.children_user + after.children_system - before.children_system
    return seconds, line
