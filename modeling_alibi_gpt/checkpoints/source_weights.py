"""Read the weights of a checkpoint folder one tensor at a time, from any kind of weight file."""

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
    """Names, shapes and values of the tensors of a folder. At most one tensor is in memory at a time.

    Files pickled by torch before 1.6 can only be read whole, so one such file is in memory at a time.

    Names are given without the prefix of the base model, which only some checkpoints have.

    Args:
        folder: Folder with ``model.safetensors`` or its index, or the pickled equivalents.
        prefix: Prefix of the base model, such as ``transformer``.
        allow_pickle: Whether pickled weights may be read, with ``weights_only=True``.

    Raises:
        ValueError: There are no weights, they are pickled although ``allow_pickle`` is false, or a file is missing or
            damaged.
    """

    def __init__(self, folder: Path, prefix: str, *, allow_pickle: bool = False) -> None:
        self.folder = folder
        self._prefix = f"{prefix}."
        self._files: dict[str, Path] = {}
        self._stored_names: dict[str, str] = {}
        self._described: dict[str, Tensor] = {}
        self._last_pickle: tuple[Path, dict[str, Tensor]] | None = None
        for path, listed in weight_files(folder, allow_pickle=allow_pickle).items():
            self._describe_file(path, listed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._described)

    def __contains__(self, name: str) -> bool:
        return name in self._described

    @property
    def num_parameters(self) -> int:
        """Total number of elements of all tensors."""
        return sum(tensor.numel() for tensor in self._described.values())

    def describe(self, name: str) -> Tensor:
        """A tensor of the same shape and dtype on the meta device.

        Raises:
            ValueError: The dtype is not floating-point, so the tensor is quantized.
        """
        tensor = self._described[name]
        if tensor.dtype not in _FLOATS:
            got, *expected = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, *_FLOATS))
            raise ValueError(
                f"{self._files[name]}: {name} is {got}, expected one of {', '.join(expected)}; "
                "convert the checkpoint from before it was quantized"
            )
        return tensor

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        return self._load(self._files[name], self._stored_names[name])[self._stored_names[name]]

    def _describe_file(self, path: Path, listed: list[str] | None) -> None:
        stored = {name: torch.empty_like(tensor, device="meta") for name, tensor in self._load(path).items()}
        check_listed(path, listed, stored)
        for stored_name, tensor in stored.items():
            name = stored_name.removeprefix(self._prefix)
            if name in self._described:
                raise ValueError(f"{path}: {name} appears twice in the weights")
            self._files[name], self._stored_names[name], self._described[name] = path, stored_name, tensor

    def _load(self, path: Path, stored_name: str | None = None) -> dict[str, Tensor]:
        """One or all tensors of a file, memory-mapped, so that no data is read before it is used."""
        if path.suffix != ".safetensors":
            return self._load_pickle(path, stored_name)
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys() if stored_name is None else [stored_name]
                return {name: file.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise ValueError(f"{path} is truncated or damaged ({error}); copy it again") from error

    def _load_pickle(self, path: Path, stored_name: str | None) -> dict[str, Tensor]:
        if zipfile.is_zipfile(path):
            return _unpickle(path, mmap=True)
        if self._last_pickle is None or self._last_pickle[0] != path:
            self._last_pickle = None  # frees the memory before the next file is read
            self._last_pickle = path, _unpickle(path, mmap=False)
        tensors = self._last_pickle[1]
        # Copies, because tied tensors share memory, which safetensors does not write.
        return tensors if stored_name is None else {stored_name: tensors[stored_name].clone()}


def _unpickle(path: Path, *, mmap: bool) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is damaged or contains more than tensors, so it is not read") from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is truncated or damaged; copy it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} does not contain named tensors, so it is not read")
    return tensors
