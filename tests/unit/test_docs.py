"""What the documents say is there: links, targets, commands, job names and the rule pack they show."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from safer_ray.core.rules import load_pack

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("requirements/*.md")])
STAGE_COMMANDS = {"synth", "sft", "erpo", "eval"}


def _commands() -> set[str]:
    trees = [ast.parse(path.read_text()) for path in REPOSITORY.glob("safer_ray/cli*.py")]
    groups = {name for tree in trees for name in re.findall(r"add_typer\(\w+, name='(\w+)'", ast.unparse(tree))}
    functions = (node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef))
    return (
        STAGE_COMMANDS
        | groups
        | {
            each.name
            for each in functions
            if any(ast.unparse(decorator).endswith(".command()") for decorator in each.decorator_list)
        }
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", document.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (document.parent / target).exists()] == []


def test_the_rule_pack_in_the_documents_loads() -> None:
    text = (REPOSITORY / "docs" / "rules.md").read_text()
    [block] = re.findall(r"```yaml\n(name: .*?)```", text, re.DOTALL)
    assert set(load_pack(block, "docs/rules.md").rules) == {"R01"}


def test_every_command_in_the_documents_exists() -> None:
    used = {name for path in DOCUMENTS for name in re.findall(r"safer-ray ([a-z]+)\b", path.read_text())}
    assert used
    assert used - _commands() == set()


def test_every_make_target_in_the_documents_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    used = {
        name for path in DOCUMENTS for name in re.findall(r"(?:`|^    )make ([a-z_-]+)", path.read_text(), re.MULTILINE)
    }
    assert {"demo", "test", "check"} <= used
    targets = set(re.findall(r"^([a-z_-]+):", makefile, re.MULTILINE)) | {"test-unit"}
    assert used - targets == set()


def test_every_job_in_the_documents_is_shipped() -> None:
    used = {name for path in DOCUMENTS for name in re.findall(r"jobs/(\w+)\.yaml", path.read_text())}
    assert used - {path.stem for path in REPOSITORY.glob("jobs/*.yaml")} == set()


def test_every_file_in_the_map_of_the_code_exists() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:safer_ray|tests|rule_packs|requirements|deploy)/[\w./]+)`", text)
    assert named
    assert [path for path in named if not (REPOSITORY / path).exists()] == []
