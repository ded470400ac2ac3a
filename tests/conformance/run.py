"""Run transformers' own model tests on AlibiGPT and list what passed, what failed and why the rest was skipped.

    python tests/conformance/run.py

The tests come from the source distribution of the installed transformers, kept in ~/.cache and never in this
repository. It lacks some files that they import; ``STAND_INS`` fills those gaps. A checkout of transformers, or an
unpacked distribution with more of its files, runs more of the suite: ``--suite DIR``. ``--model llama`` runs the same
tests on Llama, for comparison; ``--record FILE.jsonl`` keeps the outcome as a record.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from modeling_alibi_gpt.runtime.records import Record, append_record, check_record, provenance


HERE = Path(__file__).resolve().parent
# What passes from the distribution alone on a CPU with two cores; with torchao it is one more.
MINIMUM_PASSED = {"alibi_gpt": 119, "llama": 122}

# Missing file -> our file, or its text. Mixins are empty: their tests are absent then, neither passed nor skipped.
STAND_INS: dict[str, Path | str] = {
    "tests/causal_lm_tester.py": HERE / "causal_lm_stand_in.py",
    "tests/distributed_testing_utils.py": HERE / "distributed_stand_in.py",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "tests/utils/tiny_model_summary.json": "{}\n",
}


class Outcome(NamedTuple):
    """Names of tests that passed, and of those that failed or were skipped with the reason."""

    passed: list[str]
    failed: dict[str, str]
    skipped: dict[str, str]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, metavar="DIR", help="a tree of transformers with tests/ and src/")
    parser.add_argument("--model", choices=MINIMUM_PASSED, default="alibi_gpt", help="default: %(default)s")
    parser.add_argument("--record", type=Path, metavar="FILE", help="a JSON Lines file to add the outcome to")
    parser.add_argument(
        "--minimum", type=int, metavar="N", help="tests that must pass (default: what passes on two CPU cores)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    suite = args.suite or fetch_distribution(version("transformers"))
    if not (suite / "tests" / "test_modeling_common.py").is_file():
        raise SystemExit(f"{suite} holds no tests/test_modeling_common.py")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        stand_ins = assemble(suite.resolve(), tree, args.model)
        print(f"transformers {version('transformers')}, tests of {suite}\nstand-ins: {', '.join(stand_ins) or 'none'}")
        report = run_pytest(tree, args.model)
        if not report.is_file():
            raise SystemExit("pytest did not finish")
        outcome = read_report(report)
    if args.record:
        suite_name = "full tree" if args.suite else "source distribution"
        append_record(args.record, make_record(args.model, suite_name, outcome, time.perf_counter() - start))
    return print_table(outcome, MINIMUM_PASSED[args.model] if args.minimum is None else args.minimum)


def fetch_distribution(release: str) -> Path:
    """The unpacked source distribution of a release of transformers, from PyPI or where an earlier call left it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "alibi_gpt" / "conformance"
    target = cache / release
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        # pip reads the metadata by building it; torch requires setuptools, so no environment need be made for that.
        options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", folder]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, f"transformers=={release}"], check=True)
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        os.replace(Path(folder) / f"transformers-{release}", target)
    return target


def assemble(suite: Path, tree: Path, model: str) -> list[str]:
    """Copy the suite, add the test module of the model, fill the gaps; returns the files for which ours stand in."""
    not_needed = shutil.ignore_patterns("models", "fixtures", "__pycache__")
    shutil.copytree(suite / "tests", tree / "tests", ignore=not_needed)
    for part in ("src", "utils"):
        if (suite / part).is_dir():
            (tree / part).symlink_to(suite / part)
    # An empty configuration of its own, lest pytest find another one further up.
    (tree / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")

    missing = [name for name in STAND_INS if not (tree / name).exists()]
    texts = {name: STAND_INS[name] for name in missing} | {module_of(model): HERE / f"{model}_suite.py"}
    for name, text in texts.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text if isinstance(text, str) else text.read_text("utf-8"), encoding="utf-8")
    for folder, _, _ in os.walk(tree / "tests"):
        Path(folder, "__init__.py").touch()
    return missing


def module_of(model: str) -> str:
    """Where the tests of a model stand in the tree."""
    return f"tests/models/{model}/test_modeling_{model}.py"


def run_pytest(tree: Path, model: str) -> Path:
    """Run the test module in a process of its own; returns where it reports."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    if (tree / "tests" / "pipelines").is_dir():
        folder = environment["TRANSFORMERS_TINY_MODEL_PATH"] = str(tree / "tiny_models")
        subprocess.run([sys.executable, HERE / "tiny_models.py", folder, model], env=environment, check=True)
    report = tree / "report.xml"
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "--disable-warnings", f"--junitxml={report}"]
    if importlib.util.find_spec("xdist"):
        options += ["-n", "auto"]
    subprocess.run(
        [sys.executable, "-m", "pytest", module_of(model), *options], cwd=tree, env=environment, check=False
    )
    return report


def read_report(report: Path) -> Outcome:
    """The outcome by pytest's report; a test that skipped one of its parts, such as one head of five, is skipped."""
    passed, failed, skipped = [], {}, {}
    for test in ET.parse(report).iter("testcase"):
        name = test.get("name", "")
        outcomes = {outcome.tag: outcome.get("message", "") for outcome in test}
        if problem := outcomes.keys() & {"failure", "error"}:
            failed[name] = outcomes[problem.pop()]
        elif "skipped" in outcomes:
            skipped[name] = outcomes["skipped"]
        else:
            passed.append(name)
    return Outcome(passed, failed, skipped)


def skipped_by_reason(outcome: Outcome) -> dict[str, list[str]]:
    """The skipped tests under the reasons that they share, the commonest first."""
    by_reason = defaultdict(list)
    for name, reason in sorted(outcome.skipped.items()):
        by_reason[_shorten(reason)].append(name)
    return dict(sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])))


def make_record(model: str, suite_name: str, outcome: Outcome, seconds: float) -> Record:
    record = {
        "kind": "conformance",
        "model": model,
        "suite": suite_name,
        "transformers": version("transformers"),
        "passed": len(outcome.passed),
        "failed": len(outcome.failed),
        "skipped": len(outcome.skipped),
        "seconds": round(seconds, 1),
        "failed_tests": sorted(outcome.failed),
        "skipped_by_reason": skipped_by_reason(outcome),
        "provenance": provenance(),
    }
    check_record(record)
    return record


def print_table(outcome: Outcome, minimum: int) -> int:
    """Print the outcome, the counts last; returns 1 if a test failed or too few passed, else 0."""
    passed, failed, skipped = outcome
    print("\nskipped  reason and tests")
    for reason, names in skipped_by_reason(outcome).items():
        print(f"{len(names):7d}  {reason}")
        print("\n".join(f"           {name}" for name in names))
    for name, reason in failed.items():
        print(f"\nFAILED {name}: {reason}")
    enough = len(passed) >= minimum
    if not enough:
        print(f"\ntoo few tests passed: expected at least {minimum}")
    print(f"\n{len(passed)} passed, {len(failed)} failed, {len(skipped)} skipped")
    return 0 if enough and not failed else 1


def _shorten(reason: str) -> str:
    """The reason without the names of test, task and mixin, so that equal reasons stand together."""
    reason = re.sub(r"^\S+::\S+ is skipped: ", "", reason)
    reason = re.sub(r"^`[\w-]+` is not in `self\.pipeline_model_mapping`.*", "a pipeline for other heads", reason)
    reason = re.sub(r" for `[\w-]+`\.$", "", reason)
    return " ".join(reason.split())[:160]


if __name__ == "__main__":
    sys.exit(main())
