"""Rules of the house that a machine can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ["axes", "errors", "ops", "layers", "mixers", "models", "data", "sharding", "train", "convert"]
RANK = {name: rank for rank, name in enumerate(LAYERS)}


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of tracked files")
    return [ROOT / name for name in listed.stdout.split() if (ROOT / name).is_file()]


def imports_of(path: Path) -> set[str]:
    """Absolute module names that `path` imports at its top level (imports inside functions are deferred on purpose)."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_flow_upwards():
    for path in tracked("seqmodels/*.py"):
        parts = path.relative_to(ROOT / "seqmodels").with_suffix("").parts
        if parts[0] not in RANK:
            continue
        for name in imports_of(path):
            pieces = name.split(".")
            assert pieces[0] not in {"eval", "configs", "benchmarks", "tests"}, f"{path} imports {name}"
            if pieces[0] == "seqmodels" and len(pieces) > 1 and pieces[1] in RANK:
                assert RANK[pieces[1]] <= RANK[parts[0]], f"{path} imports {name}, which stands above it"


def test_files_stay_short():
    long = {str(p.relative_to(ROOT)): n for p in tracked("*.py") if (n := len(p.read_text().splitlines())) > 420}
    assert not long, f"split by idea: {long}"


def test_no_path_of_a_machine():
    pattern = re.compile(r"(?:^|[\s\"'(=])/(?:work|root|home|Users|mnt|data)/")
    for path in tracked("*.py", "*.md", "*.toml", "Makefile", ".ci/*", "*.yml", "*.ipynb"):
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not pattern.search(line), f"{path}:{number}: {line.strip()}"


def test_import_is_light():
    """``import seqmodels`` and its ops, mixers and models load no heavy optional package."""
    code = (
        "import sys, seqmodels, seqmodels.ops, seqmodels.mixers, seqmodels.models;"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'wandb', 'grain', 'transformers', 'matplotlib', 'tyro'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("command", [["check", "."], ["format", "--check", "."]], ids=["check", "format"])
def test_ruff(command):
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run([ruff, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_pyright():
    pyright = Path(sys.executable).with_name("pyright")
    done = subprocess.run([pyright], cwd=ROOT, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if "error" not in output and done.returncode:
        pytest.skip(f"pyright could not start (its first run fetches a Node package): {output.strip()[-200:]}")
    assert done.returncode == 0, output[-4000:]
