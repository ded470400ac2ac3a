"""Run transformers' own model tests on AlibiGPT and list what passed, what failed and why the rest was skipped.

    python tests/conformance/run.py

The tests come from the source distribution of the installed transformers, kept in ~/.cache and never in this
repository. It lacks some files that they import; ``STAND_INS`` fills those gaps. A checkout of transformers, or an
unpacked distribution with more of its files, runs more of the suite: ``--suite DIR``.
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
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path


HERE = Path(__file__).resolve().parent
TEST_MODULE = "tests/models/alibi_gpt/test_modeling_alibi_gpt.py"
# As few as these may pass from the distribution alone, on a CPU with two cores.
MINIMUM_PASSED = 119

# Missing file -> our file, or its text. Mixins are empty: their tests are absent then, neither passed nor skipped.
STAND_INS: dict[str, Path | str] = {
    "tests/causal_lm_tester.py": HERE / "causal_lm_stand_in.py",
    "tests/distributed_testing_utils.py": HERE / "distributed_stand_in.py",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "tests/utils/tiny_model_summary.json": "{}\n",
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, metavar="DIR", help="a tree of transformers with tests/ and src/")
    parser.add_argument(
        "--minimum", type=int, default=MINIMUM_PASSED, metavar="N", help="tests that must pass (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    suite = args.suite or fetch_distribution(version("transformers"))
    if not (suite / "tests" / "test_modeling_common.py").is_file():
        raise SystemExit(f"{suite} holds no tests/test_modeling_common.py")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        stand_ins = assemble(suite.resolve(), tree)
        print(f"transformers {version('transformers')}, tests of {suite}\nstand-ins: {', '.join(stand_ins) or 'none'}")
        report = run_pytest(tree)
        if not report.is_file():
            raise SystemExit("pytest did not finish")
        passed, failed, skipped = read_report(report)
    return print_table(passed, failed, skipped, args.minimum)


def fetch_distribution(release: str) -> Path:
    """The unpacked source distribution of a release of transformers, from PyPI or where an earlier call left it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "alibi_gpt" / "conformance"
    target = cache / release
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", folder]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, f"transformers=={release}"], check=True)
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        os.replace(Path(folder) / f"transformers-{release}", target)
    return target


def assemble(suite: Path, tree: Path) -> list[str]:
    """Copy the suite, add AlibiGPT's test module, and fill the gaps; returns the files for which ours stand in."""
    not_needed = shutil.ignore_patterns("models", "fixtures", "__pycache__")
    shutil.copytree(suite / "tests", tree / "tests", ignore=not_needed)
    for part in ("src", "utils"):
        if (suite / part).is_dir():
            (tree / part).symlink_to(suite / part)
    # An empty configuration of its own, lest pytest find another one further up.
    (tree / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")

    missing = [name for name in STAND_INS if not (tree / name).exists()]
    texts = {name: STAND_INS[name] for name in missing} | {TEST_MODULE: HERE / "alibi_gpt_suite.py"}
    for name, text in texts.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text if isinstance(text, str) else text.read_text("utf-8"), encoding="utf-8")
    for folder, _, _ in os.walk(tree / "tests"):
        Path(folder, "__init__.py").touch()
    return missing


def run_pytest(tree: Path) -> Path:
    """Run the test module in a process of its own; returns where it reports."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    if (tree / "tests" / "pipelines").is_dir():
        folder = environment["TRANSFORMERS_TINY_MODEL_PATH"] = str(tree / "tiny_models")
        subprocess.run([sys.executable, HERE / "tiny_models.py", folder], env=environment, check=True)
    report = tree / "report.xml"
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-W", "ignore", f"--junitxml={report}"]
    if importlib.util.find_spec("xdist"):
        options += ["-n", "auto"]
    subprocess.run([sys.executable, "-m", "pytest", TEST_MODULE, *options], cwd=tree, env=environment, check=False)
    return report


def read_report(report: Path) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Names of tests that passed, and of those that failed or were skipped with the reason.

    A test that skipped one of its parts, such as one head of five, counts as skipped.
    """
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
    return passed, failed, skipped


def print_table(passed: list[str], failed: dict[str, str], skipped: dict[str, str], minimum: int) -> int:
    """Print the outcome, the counts last; returns 1 if a test failed or too few passed, else 0."""
    by_reason = defaultdict(list)
    for name, reason in skipped.items():
        by_reason[_shorten(reason)].append(name)
    print("\nskipped  reason and tests")
    for reason, names in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])):
        print(f"{len(names):7d}  {reason}")
        print("\n".join(f"           {name}" for name in sorted(names)))
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
