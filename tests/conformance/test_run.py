"""The runner of transformers' suite: it fills gaps only, counts parts that were skipped, and fails when it should."""

from pathlib import Path

import pytest

from modeling_alibi_gpt.runtime.records import append_record, read_records
from tests.conformance.run import (
    MINIMUM_PASSED,
    STAND_INS,
    Outcome,
    assemble,
    make_record,
    module_of,
    print_table,
    read_report,
)


REPORT = """<testsuites><testsuite>
<testcase name="test_a"/>
<testcase name="test_b"><skipped type="pytest.skip" message="test requires av"/></testcase>
<testcase name="test_c"><skipped message="ModelTest::test_c is skipped: test requires av"/></testcase>
<testcase name="test_d">{}</testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("outcome", "minimum", "exit_code", "last_line"),
    [
        ("", 2, 0, "2 passed, 0 failed, 2 skipped"),
        ("", 3, 1, "2 passed, 0 failed, 2 skipped"),
        ('<failure message="wrong"/>', 1, 1, "1 passed, 1 failed, 2 skipped"),
        ('<error message="broken"/>', 1, 1, "1 passed, 1 failed, 2 skipped"),
        ('<skipped message="no GPU"/><failure message="wrong"/>', 1, 1, "1 passed, 1 failed, 2 skipped"),
    ],
)
def test_the_table(
    outcome: str, minimum: int, exit_code: int, last_line: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT.format(outcome), encoding="utf-8")
    assert print_table(read_report(report), minimum) == exit_code
    printed = capsys.readouterr().out
    assert "      2  test requires av\n           test_b\n           test_c\n" in printed
    assert printed.splitlines()[-1] == last_line


def test_the_record_holds_counts_and_reasons(tmp_path: Path) -> None:
    skipped = {"test_b": "M::test_b is skipped: no GPU", "test_a": "M::test_a is skipped: no GPU", "test_c": "is slow"}
    outcome = Outcome(["test_d"], {"test_e": "wrong"}, skipped)
    append_record(tmp_path / "record.jsonl", make_record("llama", "full tree", outcome, 1.25))
    (record,) = read_records(tmp_path / "record.jsonl")
    assert (record["model"], record["suite"]) == ("llama", "full tree")
    assert (record["passed"], record["failed"], record["skipped"]) == (1, 1, 3)
    assert record["failed_tests"] == ["test_e"]
    assert record["skipped_by_reason"] == {"no GPU": ["test_a", "test_b"], "is slow": ["test_c"]}


@pytest.mark.parametrize("model", MINIMUM_PASSED)
def test_gaps_are_filled_and_nothing_else(model: str, tmp_path: Path) -> None:
    suite, tree = tmp_path / "suite", tmp_path / "tree"
    present = ("tests/test_modeling_common.py", "tests/causal_lm_tester.py", "tests/generation/test_utils.py")
    for name in present:
        (suite / name).parent.mkdir(parents=True, exist_ok=True)
        (suite / name).write_text("theirs", encoding="utf-8")
    tree.mkdir()
    assert set(assemble(suite, tree, model)) == STAND_INS.keys() - set(present)
    for name in present:
        assert (tree / name).read_text(encoding="utf-8") == "theirs"
    for name in (*STAND_INS, module_of(model)):
        assert (tree / name).is_file() and (tree / name).with_name("__init__.py").is_file()
    assert sorted(path for path in suite.rglob("*") if path.is_file()) == sorted(suite / name for name in present)
