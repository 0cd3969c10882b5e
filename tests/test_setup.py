"""What setup.py promises, the locks hold, and the code imports: the three must agree."""

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vmae_jax

ROOT = Path(__file__).resolve().parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def _setup_value(name: str):
    """Returns a constant of setup.py, without running it."""
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return node.value
    raise LookupError(name)


def _requirements(name: str) -> list[Requirement]:
    return [Requirement(text) for text in ast.literal_eval(_setup_value(name))]


def _extras() -> set[str]:
    texts = [node.value for node in ast.walk(_setup_value("EXTRAS")) if _is_text(node)]
    return {canonicalize_name(Requirement(text).name) for text in texts}


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _pins(lock: Path) -> dict[str, tuple[str, int]]:
    """Returns name -> (version, number of hashes)."""
    entries = re.split(r"^(?=[A-Za-z0-9])", lock.read_text(encoding="utf-8"), flags=re.MULTILINE)
    pins = {}
    for entry in entries:
        if match := re.match(r"([\w.-]+)==([\w.+!-]+)", entry):
            pins[canonicalize_name(match[1])] = (match[2], entry.count("--hash=sha256:"))
    return pins


def test_there_is_a_lock_for_every_python():
    assert [lock.stem for lock in LOCKS] == ["cpu-py3.11", "cpu-py3.12", "cpu-py3.13"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_lock_pins_all_that_setup_asks_for(lock):
    pins = _pins(lock)
    for requirement in _requirements("REQUIRED") + _requirements("TEST"):
        version, _ = pins.get(canonicalize_name(requirement.name), (None, 0))
        assert version is not None, f"{requirement.name} is missing: run `make lock`"
        assert version in requirement.specifier, f"{requirement} against {version}: run `make lock`"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_lock_is_hashed_and_names_no_place(lock):
    assert all(count > 0 for _, count in _pins(lock).values())
    lines = lock.read_text(encoding="utf-8").splitlines()
    allowed = re.compile(
        r"\s*#|[\w.-]+==[\w.+!-]+( ; [\w.!='<> ]+)? \\$|    --hash=sha256:[0-9a-f]{64}( \\)?$|$"
    )
    assert [line for line in lines if not allowed.match(line) or "://" in line] == []


def test_oldest_jax_is_locked_for_the_oldest_python():
    (jax,) = (r for r in _requirements("REQUIRED") if r.name == "jax")
    assert f">={_pins(LOCKS[0])['jax'][0]}" in str(jax.specifier)


def test_version_is_the_one_of_the_package():
    assert importlib.metadata.version("vmae_jax") == vmae_jax.__version__


def test_every_library_that_we_import_is_declared():
    declared = {canonicalize_name(r.name) for r in _requirements("REQUIRED")} | _extras()
    distributions = importlib.metadata.packages_distributions()
    undeclared = {}
    for path in (ROOT / "vmae_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for library in {name.split(".")[0] for name in names}:
                known = {canonicalize_name(d) for d in distributions.get(library, [library])}
                ours = library == "vmae_jax" or library in sys.stdlib_module_names
                if not ours and not known & declared:
                    undeclared[library] = str(path.relative_to(ROOT))
    assert undeclared == {}


def test_every_folder_of_code_is_a_package():
    # In a checkout a missing __init__.py goes unnoticed; a wheel leaves the folder out.
    folders = {path.parent for path in (ROOT / "vmae_jax").rglob("*.py")}
    assert [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").exists()] == []
