"""What SECURITY.md promises of the code: nothing is unpickled, no shell, no foreign code, no key written anywhere."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_run import carry_out, prepared
from source_trees import PACKAGE, nodes_of, sources

from safer_ray.config import ModelConfig
from safer_ray.report import write_report

REPOSITORY = PACKAGE.parent
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "shelve", "marshal", "joblib", "cloudpickle", "jsonpickle"}
SHELLS = {"os.system", "os.popen", "os.execl", "os.spawnl", "pty.spawn", "commands.getoutput"}
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}
LOADERS = {"torch.load", "yaml.load", "yaml.unsafe_load", "torch.hub.load"}
# The learner compiles its own kernels with the machine's compiler: a list of arguments, nothing of which is data.
COMPILES = {"cpu_kernels.py": {"calls subprocess.run"}}
CANARY = "sk-canary-5f0c2a9e41d74b8e"


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    for node in nodes_of(source):
        if isinstance(node, ast.Call):
            yield _name(node.func), node


def danger_in(source: str) -> list[str]:
    """Return what in ``source`` would run something that came as data."""
    found = []
    for node in nodes_of(source):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"imports {name}" for name in names if name.split(".")[0] in UNPICKLERS]
        if isinstance(node, ast.Attribute) and node.attr in UNPICKLERS:
            found.append(f"uses {_name(node)}")
    for name, call in _calls(source):
        if name in SHELLS | RUNS_TEXT | LOADERS or name.startswith("subprocess."):
            found.append(f"calls {name}")
        given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
        if name in ("numpy.load", "np.load") and given.get("allow_pickle", True) is not False:
            found.append(f"calls {name} without allow_pickle=False")
        for keyword in call.keywords:
            constant = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and constant is True:
                found.append(f"{name}({keyword.arg}=True)")
            if keyword.arg == "typ" and constant not in ("rt", "safe"):
                found.append(f"{name}(typ={constant!r})")
            if keyword.arg in ("weights_only", "use_safetensors") and constant is False:
                found.append(f"{name}({keyword.arg}=False)")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "import torch\ntorch.load('x')",
        "ray.cloudpickle.loads(b'')",
        "subprocess.run('ls', shell=True)",
        "import os\nos.system(config.name)",
        "eval(text)",
        "YAML(typ='unsafe').load(text)",
        "AutoModel.from_pretrained(m, trust_remote_code=True)",
        "numpy.fromfile(p)\nnumpy.load(p, allow_pickle=True)",
    ],
)
def test_what_would_run_data_is_found(source: str) -> None:
    assert danger_in(source) != []


def test_no_module_unpickles_starts_a_shell_or_runs_text() -> None:
    found = {path.name: danger_in(source) for path, source in sources().items()}
    assert len(found) > 50
    faults = {name: set(faults) - COMPILES.get(name, set()) for name, faults in found.items()}
    assert {name: left for name, left in faults.items() if left} == {}


def test_whoever_loads_a_network_asks_for_safetensors() -> None:
    for path, source in sources().items():
        for name, call in _calls(source):
            keywords = {keyword.arg for keyword in call.keywords}
            if re.search(r"AutoModel\w*\.from_pretrained$", name):  # AutoConfig and AutoTokenizer read JSON
                assert keywords & {"use_safetensors", "gguf_file"}, f"{path.name}:{call.lineno}"
            if name.endswith("save_pretrained"):
                assert "safe_serialization" not in keywords, f"{path.name}:{call.lineno}"


def test_code_that_comes_with_a_model_is_not_run_unless_the_job_says_so() -> None:
    assert ModelConfig(id="m").trust_remote_code is False
    asks = [path.name for path in (REPOSITORY / "jobs").glob("*.yaml") if "trust_remote_code" in path.read_text()]
    assert asks == []


def test_templates_escape_everything_but_our_own_figures() -> None:
    templates = PACKAGE / "templates"
    marked = [
        line.strip()
        for path in templates.glob("*.j2")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\|\s*safe|autoescape|Markup", line)
    ]
    assert len(marked) == 1
    assert "plot.svg|safe" in marked[0]


def test_clusters_we_start_ask_for_a_token_and_show_no_dashboard_to_others() -> None:
    session = (PACKAGE / "cluster" / "session.py").read_text(encoding="utf-8")
    assert "include_dashboard=False" in session
    assert 'TOKEN_MODE: "token"' in session
    for path in (REPOSITORY / "cluster.yaml", REPOSITORY / "docs" / "cluster.md"):
        text = path.read_text(encoding="utf-8")
        heads = [line for line in text.splitlines() if "ray start --head" in line]
        assert heads
        assert [line for line in heads if "--dashboard-host=127.0.0.1" not in line] == []
        assert "RAY_AUTH_MODE=token" in text
    assert "dashboard-host: 0.0.0.0" not in (REPOSITORY / "deploy" / "kuberay.yaml").read_text(encoding="utf-8")


def test_a_key_in_the_environment_reaches_no_file_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN", "MY_KEY"):
        monkeypatch.setenv(name, CANARY)
    teacher = ("kind=openai", "base_url=https://llm.example/v1", "model=m", "key_env=MY_KEY")
    prep = prepared(tmp_path / "job", *(f"teacher.{each}" for each in teacher))
    run = carry_out(prep, tmp_path / "run")
    write_report(run.run_dir.root)
    files = [path for path in run.run_dir.root.rglob("*") if path.is_file()]
    assert {"config.json", "journal.jsonl", "summary.json", "report.html"} <= {path.name for path in files}
    assert "MY_KEY" in run.run_dir.config.read_text()
    assert [path.name for path in files if CANARY.encode() in path.read_bytes()] == []


# ---- what is installed ----


def lock_faults(lock: str) -> list[str]:
    """Return the lines of a lock file that do not pin one version of one package from the index."""
    lines = [line.split("#")[0].strip() for line in lock.splitlines()]
    pinned = re.compile(r"[A-Za-z0-9][\w.-]*(\[[\w,-]+\])?==[\w.+!-]+( *;.*)?( --hash=sha256:[0-9a-f]{64})*")
    return [line for line in lines if line and not pinned.fullmatch(line)]


@pytest.mark.parametrize(
    "line", ["numpy", "numpy>=2", "git+https://x/y", "--extra-index-url https://x", "a==1 -r b", "./w"]
)
def test_an_unpinned_line_of_a_lock_is_found(line: str) -> None:
    assert lock_faults(f"attrs==26.1.0\n{line}\n") != []


def test_every_package_of_the_lock_is_pinned() -> None:
    assert lock_faults((REPOSITORY / "requirements" / "cpu.lock").read_text(encoding="utf-8")) == []


def test_what_is_installed_is_what_the_lock_says() -> None:
    lock = (REPOSITORY / "requirements" / "cpu.lock").read_text(encoding="utf-8")
    pinned = (line.split("#")[0].split(";")[0].strip() for line in lock.splitlines())
    wanted = dict(line.split("==") for line in pinned if line)
    wanted.pop("setuptools", None)  # an environment may bring its own; nothing imports it at run time
    found = {name: importlib.metadata.version(name) for name in wanted}
    differing = {name: found[name] for name in wanted if found[name].split("+")[0] != wanted[name].split("+")[0]}
    assert differing == {}
