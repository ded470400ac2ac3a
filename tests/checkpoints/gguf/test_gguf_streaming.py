"""GGUF files are written tensor by tensor, and say to people what they hold."""

import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modeling_alibi_gpt.checkpoints.source_weights import SourceWeights
from tests.support.gguf_cases import SIZES, export


ROOT = Path(__file__).resolve().parents[2]
CARD = """---
license: other
license_name: bigscience-bloom-rail-1.0
license_link: https://huggingface.co/spaces/bigscience/license
model_name: Small words
---
# Small words
"""


def test_name_size_and_license_are_those_of_model_and_card(save: Callable, tmp_path: Path) -> None:
    num_thousands = round(save().num_parameters() / 1e3)
    fields = {name: field.contents() for name, field in export(tmp_path).fields.items()}
    assert (fields["general.name"], fields["general.type"]) == ("model", "model")
    assert fields["general.size_label"] == f"{num_thousands}K"
    assert not [name for name in fields if "license" in name]

    card = tmp_path / "model" / "README.md"
    card.write_text(CARD, encoding="utf-8")
    fields = {name: field.contents() for name, field in export(tmp_path).fields.items()}
    assert (fields["general.name"], fields["general.license"]) == ("Small words", "other")
    assert fields["general.license.name"] == "bigscience-bloom-rail-1.0"
    assert fields["general.license.link"] == "https://huggingface.co/spaces/bigscience/license"
    assert export(tmp_path, name="Mine").get_field("general.name").contents() == "Mine"

    card.write_text("---\nlicense: [mit, apache-2.0]\n---\n", encoding="utf-8")
    assert export(tmp_path).get_field("general.license").contents() == "mit, apache-2.0"


@pytest.mark.parametrize("content", ["---\nlicense: [\n---\n", "---\n- a\n---\n", "\ud800"])
def test_a_card_that_cannot_be_read_is_refused(content: str, save: Callable, tmp_path: Path) -> None:
    save()
    (tmp_path / "model" / "README.md").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match="README.md: the front matter between --- is not a YAML mapping"):
        export(tmp_path)
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_more_than_the_tensors_of_one_step_are_held(
    dtype: str, save: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save()
    read, alive, most_alive = SourceWeights.read, weakref.WeakSet(), 0

    def watch(self: SourceWeights, name: str) -> Tensor:
        nonlocal most_alive
        tensor = read(self, name)
        alive.add(tensor)
        most_alive = max(most_alive, len(alive))
        return tensor

    monkeypatch.setattr(SourceWeights, "read", watch)
    export(tmp_path, dtype=dtype)
    # Queries, keys and values of a layer, and what the step before made, until this one has made its own.
    assert 3 <= most_alive <= 4


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_stored_in_another_dtype_are_the_same_numbers(
    stored: torch.dtype, save: Callable, tmp_path: Path
) -> None:
    model = save().to(stored)
    model.save_pretrained(tmp_path / "model")
    (tensor,) = [tensor for tensor in export(tmp_path).tensors if tensor.name == "blk.0.ffn_up.weight"]
    found = torch.from_numpy(tensor.data.copy())
    assert torch.equal(found, model.model.layers[0].mlp.up_proj.weight.detach().float())


MEMORY = """
import re, sys
from pathlib import Path
from modeling_alibi_gpt.checkpoints.gguf.export import export_gguf

def peak_bytes():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = peak_bytes()
num_bytes = export_gguf(sys.argv[1], sys.argv[2])["num_bytes"]
print(num_bytes, peak_bytes() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak of a process")
def test_a_large_model_takes_a_fraction_of_its_size(save: Callable, tmp_path: Path) -> None:
    """Half a gigabyte; a fifth more than the code was at import, against one and a third times the file before."""
    save(**{**SIZES, "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 6})
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "model"), str(tmp_path / "model.gguf")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    num_bytes, extra_bytes = map(int, done.stdout.split())
    assert num_bytes > 400e6
    assert extra_bytes < num_bytes / 2
