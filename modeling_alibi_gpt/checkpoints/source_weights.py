"""The weights of a checkpoint folder, read one tensor at a time whatever files they lie in."""

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from modeling_alibi_gpt.checkpoints.folder import check_listed, weight_files


_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class SourceWeights:
    """Names, shapes and values of the tensors of a folder; no more than one tensor is held at a time.

    Names are those in the files without the prefix of the base model, which some checkpoints have and some have not.

    Args:
        folder: With ``model.safetensors`` or its index, or the pickled equivalents.
        prefix: Of the base model, such as ``transformer``.
        allow_pickle: Whether pickled weights may be read, with ``weights_only=True``.

    Raises:
        ValueError: There are no weights, they are pickled and must not be, or a file is missing or damaged.
    """

    def __init__(self, folder: Path, prefix: str, *, allow_pickle: bool = False) -> None:
        self.folder = folder
        self._prefix = f"{prefix}."
        self._files: dict[str, Path] = {}
        self._stored_names: dict[str, str] = {}
        self._described: dict[str, Tensor] = {}
        for path, listed in weight_files(folder, allow_pickle=allow_pickle).items():
            self._describe_file(path, listed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._described)

    def __contains__(self, name: str) -> bool:
        return name in self._described

    @property
    def num_parameters(self) -> int:
        """How many numbers all tensors together hold."""
        return sum(tensor.numel() for tensor in self._described.values())

    def describe(self, name: str) -> Tensor:
        """A tensor of the same shape and dtype on the meta device.

        Raises:
            ValueError: It holds no floating-point numbers, so that it is no weight but a code for one.
        """
        tensor = self._described[name]
        if tensor.dtype not in _FLOATS:
            got, *expected = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, *_FLOATS))
            raise ValueError(
                f"{self._files[name]}: {name} is {got}, expected one of {', '.join(expected)}; "
                "convert the checkpoint as it was before it was quantised"
            )
        return tensor

    def read(self, name: str) -> Tensor:
        """One tensor, from a file that is closed again."""
        return self._load(self._files[name], self._stored_names[name])[self._stored_names[name]]

    def _describe_file(self, path: Path, listed: list[str] | None) -> None:
        stored = {name: torch.empty_like(tensor, device="meta") for name, tensor in self._load(path).items()}
        check_listed(path, listed, stored)
        for stored_name, tensor in stored.items():
            name = stored_name.removeprefix(self._prefix)
            if name in self._described:
                raise ValueError(f"{path}: {name} stands twice in the weights")
            self._files[name], self._stored_names[name], self._described[name] = path, stored_name, tensor

    def _load(self, path: Path, stored_name: str | None = None) -> dict[str, Tensor]:
        """One tensor of a file or all, backed by the file: no data is read before it is used."""
        if path.suffix != ".safetensors":
            return _load_pickle(path)
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys() if stored_name is None else [stored_name]
                return {name: file.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise ValueError(f"{path} is truncated or damaged ({error}); copy it again") from error


def _load_pickle(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is damaged or holds more than tensors, and is not read") from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is truncated or damaged; copy it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} holds something else than named tensors, and is not read")
    return tensors
