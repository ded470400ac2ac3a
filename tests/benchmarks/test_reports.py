"""What a report takes is measured over whole comparisons, and does not grow much with its rows."""

import pytest

from benchmarks.reports import comparison, measure_reports, trials
from modeling_alibi_gpt.report.complete import check_page_records
from modeling_alibi_gpt.runtime.records import check_record


def test_records_are_grown_from_those_of_the_repository() -> None:
    studies, grown = trials(2000), comparison(2000)
    check_page_records([*studies, *grown])
    assert {record["study"] for record in studies} == {"study 0", "study 1"}
    cells = [record for record in grown if record["kind"] == "comparison"]
    assert len(cells) == 216 and cells[0]["seeds"] == [*range(8)]
    assert abs(len(grown) - 2000) < 150, "at most half a seed's rows and the cells away"


@pytest.mark.slow
def test_twenty_thousand_rows_take_little_memory_beside_what_is_imported() -> None:
    """Measured: 69 MB for rows of studies, which begin as 15 MB of JSON. A margin of a quarter is for other versions
    of the libraries; before figures were drawn one at a time and rows read without copies it was 310 MB.
    """
    record = next(measure_reports(20_000))
    check_record(record)
    assert (record["rows_of"], record["num_records"], record["num_figures"]) == ("studies", 20_000, 20)
    assert record["peak_memory_bytes"] - record["memory_before_bytes"] < 1.25 * 69e6
