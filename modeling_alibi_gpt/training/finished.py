"""A run that is finished: its record, believed only while the model that it speaks of is there and whole."""

from pathlib import Path

from modeling_alibi_gpt.checkpoints.load import load_model_tokenizer
from modeling_alibi_gpt.runtime.manifest import MANIFEST_FILE, manifest_difference
from modeling_alibi_gpt.runtime.records import Record, check_record, read_records
from modeling_alibi_gpt.training.run_folder import RECORD_FILE


def finished_record(output_dir: Path, *, reads_model: bool = True) -> Record | None:
    """The ``training`` record of a finished run, None where the run is not finished.

    Args:
        output_dir: Folder of the run.
        reads_model: Makes sure that the model is there, by reading all of it; one of several processes is enough.

    Raises:
        ValueError: The record is damaged, or weights, config or tokenizer are missing, cut or not those of the run.
    """
    path = output_dir / RECORD_FILE
    if not path.exists():
        return None
    try:
        record = next(iter(read_records(path)), {})
        check_record(record)
        if record["kind"] != "training":
            raise ValueError(f"its first record is of kind {record['kind']!r}, expected 'training'")
        if reads_model:
            check_model_folder(output_dir)
    except ValueError as error:
        raise ValueError(
            f"{output_dir} holds a finished run that is damaged ({error}): restore the file, or delete {path}, and "
            "the same command goes on from the last checkpoint or, without one, from the start"
        ) from error
    return record


def check_model_folder(folder: Path) -> None:
    """Raise a ValueError unless a folder holds the very model that was saved there, with its tokenizer.

    The manifest decides. What an earlier version saved has none: there config, shapes of the weights and tokenizer
    must be in order.
    """
    if (folder / MANIFEST_FILE).exists():
        if difference := manifest_difference(folder):
            raise ValueError(difference)
    else:
        load_model_tokenizer(folder)
