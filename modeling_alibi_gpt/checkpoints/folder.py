"""Check the files, names and shapes of a checkpoint folder before any of its weights is read.

Every command that loads a folder calls this first. A folder may be untrusted: its index may name files outside the
folder, and its config may require more memory than any machine has.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from modeling_alibi_gpt.checkpoints.model_size import (
    POSITION_PREFIX,
    Shape,
    WeightShapes,
    check_memory,
    check_model_memory,
    weight_shapes,
)
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.runtime.parsing import parse_json
from modeling_alibi_gpt.runtime.remote_code import is_remote_code_trusted, load_failure


INDEX_NAMES = (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME)
_DECODER_PREFIX = "model."
# Output layers of the classes that a decoder may be saved as.
_HEAD_PREFIXES = ("lm_head.", "score.", "qa_outputs.")
_LEAST_BYTES = 2  # per weight, in the smallest dtype used for computation


def read_index(path: Path) -> dict[str, str]:
    """Read an index of shards: a mapping from the name of each weight to its file.

    Raises:
        ValueError: The file contains no such mapping, or names a file that could be outside its folder.
    """
    try:
        weight_map = parse_json(path.read_bytes())["weight_map"]
        if not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a weight index, expected JSON with a weight_map") from error
    for name in sorted(set(weight_map.values())):
        if not is_plain_name(name):
            raise ValueError(
                f"{path} names {name!r}, which is not a file in its folder: do not trust the source of this checkpoint"
            )
    return weight_map


def check_hub_index(repository: str) -> None:
    """Raise a ValueError if the shard index of a Hub repository is invalid or names files outside the repository.

    Only the index is downloaded.
    """
    path = cached_file(repository, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    if path is not None:
        _check_index(Path(path))


def _check_index(path: Path) -> None:
    """Raise a ValueError unless transformers, which does not check an index, can use it."""
    read_index(path)
    if not isinstance(parse_json(path.read_bytes()).get("metadata"), dict):
        raise ValueError(f'{path} has no metadata mapping, which transformers requires; add "metadata": {{}} to it')


def is_plain_name(name: str) -> bool:
    """Whether a name, joined to a folder, is always an entry of that folder."""
    return name not in ("", ".", "..") and not any(character in name for character in "/\\\0")


def weight_files(folder: Path, *, allow_pickle: bool = False) -> dict[Path, list[str] | None]:
    """The weight files of a folder, each with the names that the index lists for it, or None without an index.

    Raises:
        ValueError: There are no weights, they are pickled although ``allow_pickle`` is false, or the index is invalid
            or names a file outside the folder or a missing file.
    """
    kinds = [(SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)]
    kinds += [(WEIGHTS_NAME, WEIGHTS_INDEX_NAME)] if allow_pickle else []
    for single, index in kinds:
        if (folder / single).is_file():
            return {folder / single: None}
        if (folder / index).is_file():
            return _indexed_files(folder / index)
    if any(folder.glob("pytorch_model*.bin")):
        raise ValueError(
            f"{folder}: no file named {SAFE_WEIGHTS_NAME}; the weights are pickled, and a pickle can run code: save "
            "them as safetensors ('alibi-gpt convert --allow-pickle' reads those of other families, weights_only)"
        )
    raise ValueError(
        f"{folder}: no weights found, expected {SAFE_WEIGHTS_NAME} or {SAFE_WEIGHTS_INDEX_NAME} "
        "('alibi-gpt convert --allow-pickle' reads pickled ones of other families)"
    )


def stored_shapes(folder: Path) -> dict[str, Shape]:
    """Shapes of the weights in a folder's safetensors files, from the headers, which are checked against file sizes.

    Raises:
        ValueError: As for ``weight_files``, or a file is truncated, lacks a weight or repeats one.
    """
    shapes: dict[str, Shape] = {}
    for path, listed in weight_files(folder).items():
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()  # the open file itself is not iterable
                found = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        except SafetensorError as error:
            raise ValueError(f"{path} is truncated or damaged ({error}); copy it again") from error
        check_listed(path, listed, found)
        if twice := shapes.keys() & found:
            raise ValueError(f"{path}: {min(twice)} appears twice in the weights")
        shapes |= found
    return shapes


def check_listed(path: Path, listed: list[str] | None, found: Mapping[str, object]) -> None:
    """Raise a ValueError unless a file contains every weight that an index lists for it."""
    if absent := sorted(set(listed or ()) - found.keys()):
        raise ValueError(f"{path} lacks {absent[0]}, which its index lists; copy it again")


def check_weights(folder: Path, config: PreTrainedConfig) -> None:
    """Raise a ValueError unless a folder contains all weights that its config requires, with the right shapes.

    Sizes that exceed memory are refused, with the needed and the available amount. The output layer may be missing,
    and so may the parameters of an AlibiGPT's position method, which training can initialize. For quantized weights,
    only the files are checked.
    """
    stored = stored_shapes(folder)
    if not (folder / SAFE_WEIGHTS_NAME).is_file():
        _check_index(folder / SAFE_WEIGHTS_INDEX_NAME)
    if getattr(config, "quantization_config", None) is not None:
        return
    try:
        if isinstance(config, AlibiGPTConfig):
            _check_shapes(stored, weight_shapes(config))
        else:
            _check_other_family(stored, config)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _indexed_files(index: Path) -> dict[Path, list[str] | None]:
    files: dict[Path, list[str] | None] = {}
    weight_map = read_index(index)
    for name in sorted(set(weight_map.values())):
        if not (index.parent / name).is_file():
            raise ValueError(f"{index} names {name}, which is not in the folder; copy it again")
        files[index.parent / name] = [weight for weight, file in weight_map.items() if file == name]
    return files


def _check_shapes(stored: Mapping[str, Shape], expected: WeightShapes) -> None:
    prefix = "" if any(name.startswith(_DECODER_PREFIX) for name in stored) else _DECODER_PREFIX
    stored = {name if name.startswith(_HEAD_PREFIXES) else prefix + name: shape for name, shape in stored.items()}
    _check_size(expected.num_parameters, stored)
    for name, shape in sorted(stored.items()):
        _check_shape(name, expected.get(name), shape)
    may_lack = {name for name in expected.shared if name.startswith((*_HEAD_PREFIXES, POSITION_PREFIX))}
    needed = (name for name in expected.names() if name not in may_lack)
    if first_missing := next((name for name in needed if name not in stored), None):
        num_held = sum(name not in may_lack and expected.get(name) is not None for name in stored)
        num_missing = expected.num_tensors - len(may_lack) - num_held
        raise ValueError(f"weights that its config requires are missing ({num_missing:,}), e.g. {first_missing}")
    unknown = [name for name in stored if expected.get(name) is None and not name.startswith(_HEAD_PREFIXES)]
    if unknown:
        raise ValueError(f"weights do not belong to the model in its config ({len(unknown):,}), e.g. {min(unknown)}")


def _check_other_family(stored: Mapping[str, Shape], config: PreTrainedConfig) -> None:
    check_model_memory(config, _LEAST_BYTES)  # before the next lines build its layers one by one
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=is_remote_code_trusted())
    except Exception as error:  # other families do not validate their configs, so any error is possible
        reason = f"{type(error).__name__}: {load_failure(error)}"
        raise ValueError(f"transformers cannot build a model from config.json ({reason}); check its sizes") from error
    _check_size(model.num_parameters(), stored)
    for name, tensor in model.state_dict().items():
        if name in stored:
            _check_shape(name, tuple(tensor.shape), stored[name])


def _check_size(num_parameters: int, stored: Mapping[str, Shape]) -> None:
    num_held = sum(math.prod(shape) for shape in stored.values())
    if num_parameters > num_held:
        check_memory(
            num_parameters * _LEAST_BYTES,
            f"its config requires {num_parameters:,} parameters, but the weights have {num_held:,}: the former",
        )


def _check_shape(name: str, expected: Shape | None, found: Shape) -> None:
    if expected is not None and expected != found:
        raise ValueError(f"its config requires {name} of shape {expected}, but the weights have {found}")
