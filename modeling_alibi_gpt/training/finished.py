"""Read the record of a finished run, after checking that its model is still intact."""

from pathlib import Path

from modeling_alibi_gpt.runtime.manifest import manifest_difference
from modeling_alibi_gpt.runtime.records import Record, check_record, read_records
from modeling_alibi_gpt.training.run_folder import RECORD_FILE


def finished_record(output_dir: Path, *, reads_model: bool = True) -> Record | None:
    """The ``training`` record of a finished run; None if the run is not finished.

    Args:
        output_dir: Folder of the run.
        reads_model: Check the model by reading all of it; one of several processes is enough.

    Raises:
        ValueError: The record, the weights, the config or the tokenizer are missing, damaged or not those of the run.
    """
    path = output_dir / RECORD_FILE
    if not path.exists():
        return None
    try:
        record = next(iter(read_records(path)), {})
        check_record(record)
        if record["kind"] != "training":
            raise ValueError(f"its first record is of kind {record['kind']!r}, expected 'training'")
        if reads_model and (difference := manifest_difference(output_dir)):
            raise ValueError(difference)
    except ValueError as error:
        raise ValueError(
            f"{output_dir} contains a finished run that is damaged ({error}): restore the file, or delete {path} and "
            "run the same command again, which resumes from the last checkpoint or starts over if there is none"
        ) from error
    return record
