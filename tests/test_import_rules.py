"""The rules of the house: what travels, who may import whom, and that nothing goes round in circles."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from transformers.dynamic_module_utils import get_imports


ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "modeling_alibi_gpt"
TRAVELLING = sorted(path for path in PACKAGE.glob("*.py") if not path.name.startswith("__"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
COMMAND_LINE = sorted((ROOT / "alibi_gpt_cli").glob("*.py"))


def _imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, by absolute name, and names of others' packages."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            found.add(f"modeling_alibi_gpt.{node.module}")
    return found


@pytest.mark.parametrize("path", TRAVELLING, ids=lambda path: path.name)
def test_travelling_files_import_only_their_neighbours(path: Path) -> None:
    allowed = {"torch", "transformers", "huggingface_hub"} | set(sys.stdlib_module_names)
    # The Hub loader refuses a folder whose files import a package that is missing, unless they try to.
    assert set(get_imports(path)) <= allowed
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed | {"triton"}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] in allowed
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 and node.module and (PACKAGE / f"{node.module}.py").is_file()


@pytest.mark.parametrize("path", TRAVELLING, ids=lambda path: path.name)
def test_travelling_text_cannot_be_taken_for_an_import(path: Path) -> None:
    """The Hub loader finds relative imports by a regular expression over the text, docstrings included."""
    written = set(re.findall(r"^\s*from\s+\.(\S+)\s+import", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert {f"modeling_alibi_gpt.{name}" for name in written} <= _imports(path)


def test_mathematics_stands_on_torch_alone() -> None:
    assert _imports(PACKAGE / "alibi.py") <= {"math", "collections.abc", "torch"}


def test_attention_does_not_know_the_model() -> None:
    for path in PACKAGE.glob("attention*.py"):
        assert not _imports(path) & {"modeling_alibi_gpt.modeling_alibi_gpt", "modeling_alibi_gpt.position_methods"}


def test_the_report_imports_runtime_only() -> None:
    for path in (PACKAGE / "report").glob("*.py"):
        ours = {name for name in _imports(path) if name.startswith("modeling_alibi_gpt")}
        assert all(name.split(".")[1] in ("report", "runtime") for name in ours), path


def test_nothing_imports_scripts_benchmarks_or_the_command_line() -> None:
    for path in MODULES.values():
        imported = {name.split(".")[0] for name in _imports(path)}
        assert not imported & {"scripts", "alibi_gpt_cli", "benchmarks"}, path


def test_no_command_needs_the_library_that_a_script_hides() -> None:
    """``python scripts/NAME.py`` makes ``import evaluate`` find ``scripts/evaluate.py``."""
    metric = "modeling_alibi_gpt.evaluation.token_perplexity"
    users = [name for name, path in MODULES.items() if {"evaluate", metric} & _imports(path)]
    assert users == [metric]
    assert not any(metric in _imports(path) for path in COMMAND_LINE)


ROOMS = ("", "runtime", "report", "data", "checkpoints", "evaluation", "training", "experiments", "explorer")


def test_folders_import_only_folders_above_them() -> None:
    """The rooms in order: the travelling files, then each folder with what it may stand on before it."""
    for name, path in MODULES.items():
        room = _room(name)
        allowed = {"runtime", "report"} if room == "report" else set(ROOMS[: ROOMS.index(room) + 1])
        found = {_room(target) for target in _imports(path) & MODULES.keys()}
        assert found <= allowed, f"{name} imports {sorted(found - allowed)}"


def _room(module: str) -> str:
    """The folder of a module of ours; "" for the travelling files."""
    parts = MODULES[module].parent.relative_to(PACKAGE).parts
    return parts[0] if parts else ""


def test_no_drawer_for_odds_and_ends() -> None:
    assert not [name for name in MODULES if name.rpartition(".")[2] in ("utils", "common", "misc", "helpers")]


def test_imports_have_no_cycle() -> None:
    graph = {name: _imports(path) & set(MODULES) for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_position_methods_are_chosen_by_their_table_alone() -> None:
    comparison = re.compile(r"position_method\s*(==|!=|in)\s*[\"'(]")
    for path in PACKAGE.rglob("*.py"):
        hits = comparison.findall(path.read_text(encoding="utf-8"))
        # A sweep of beta refuses what has no beta; a record says what varies; a figure gives ALiBi its color.
        assert not hits or path.name in ("beta_objectives.py", "variants.py") or path.parent.name == "report", path


def _declared() -> dict[str, SpecifierSet]:
    """The ranges in pyproject by name, those of extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    return {canonicalize_name(r.name): r.specifier for r in map(Requirement, lines)}


def test_what_is_imported_is_declared() -> None:
    # Few machines have these two.
    few = {"gradio": ["gradio"], "xllamacpp": ["xllamacpp"]}
    distributions = {**few, **metadata.packages_distributions()}
    # `_typeshed` is of type checkers.
    ours = {"alibi_gpt_cli", "benchmarks", "modeling_alibi_gpt", "_typeshed", *sys.stdlib_module_names}
    files = [*MODULES.values(), *COMMAND_LINE, *(ROOT / "scripts").glob("*.py")]
    imported = {name.split(".")[0] for path in files for name in _imports(path)} - ours
    undeclared = [name for name in imported if not {*map(canonicalize_name, distributions[name])} & _declared().keys()]
    assert undeclared == [] and {"torch", "sqlalchemy", "typer"} <= imported


def test_the_versions_that_are_tested_lie_within_the_ranges() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    for name, specifier in _declared().items():
        assert pinned.get(name) is None or pinned[name] in specifier, name
