"""Keeps the rooms of docs/architecture.md apart: who imports whom, who touches which library."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vmae_jax"

# As in docs/architecture.md. A room imports from rooms of lower rows and from itself.
ROWS = {
    "config": 0,
    "rules": 0,
    "errors": 0,
    "variants": 0,
    "chips": 0,
    "distributed": 0,
    "ops": 0,
    "models": 1,
    "data": 1,
    "systems": 2,
    "train": 3,
    "evals": 3,
    "convert": 3,
    "planning": 4,
    "assemble": 4,
    "main": 4,
    "tools": 4,
}
# Within a row: the config checks names and derives numbers with the functions that later use them;
# whoever starts something has it put together by assemble.
ALLOWED_BESIDE = {
    ("config", "ops"),
    ("ops", "chips"),
    ("config", "errors"),
    ("config", "variants"),
    ("distributed", "errors"),
    ("main", "assemble"),
    ("tools", "assemble"),
    ("tools", "planning"),
}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
# library -> the files that may import it, as the start of a path below vmae_jax/
CONFINED = {
    "av": ("data/video.py",),
    "fsspec": ("data/storage.py",),
    "tensorflow_datasets": ("data/public_sets.py",),
    "array_record": ("data/records.py", "data/prepare.py"),
    "torch": ("convert/torch_reader.py", "tools/bench"),
    "transformers": ("tools/bench",),
    "wandb": ("train/",),
    "h5py": ("evals/window_features.py",),
    "apache_beam": ("data/", "tools/"),
}
BANNED = {"tensorflow", "clu", "decord", "torchvision", "pytorchvideo"}

Import = tuple[int, str]  # line number, dotted name


def _imports(source: str, package: str) -> Iterator[Import]:
    """Yields every name that a file imports, wherever in it; `package` resolves relative ones."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def _room(name: str) -> str | None:
    """Returns the room of a dotted name of ours; None for the package itself (its version)."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROWS else None


def _complaint(room: str, name: str) -> str | None:
    """Returns why a file of `room` may not import `name`, or None if it may."""
    other = _room(name)
    if other is None or other == room or (room, other) in ALLOWED_BESIDE:
        return None
    if ROWS[other] >= ROWS[room]:
        return f"{room} (row {ROWS[room]}) imports {name} (row {ROWS[other]})"
    if other == "systems" and ROWS[room] == 3 and not _is_base(name):
        return f"{room} names a system: {name}; it takes one as an argument"
    return None


# What systems are made of; the other files of systems/ are papers.
SHARED_PARTS = ("base", "inputs", "stacks", "multiscale", "augmented", "classifiers")
SHARED_PARTS += ("autoencoders", "image_teacher")


def _is_shared(name: str) -> bool:
    return name.split(".")[2:3] in [[part] for part in SHARED_PARTS]


def _is_base(name: str) -> bool:
    return name.startswith("vmae_jax.systems.base")


def _files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def _imports_of(path: Path) -> list[Import]:
    package = ".".join(path.parent.relative_to(ROOT).parts)
    return list(_imports(path.read_text(encoding="utf-8"), package))


def _report(found: list[str]) -> None:
    assert not found, "\n".join(["See docs/architecture.md:", *found])


def test_every_file_lies_in_a_room():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in _files()}
    _report([f"vmae_jax/{room} is in no row" for room in sorted(rooms - set(ROWS))])


def test_files_import_from_rows_above_their_own():
    found = []
    for path in _files():
        room = _room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if room is None:
            continue  # the test above says so
        for line, name in _imports_of(path):
            if name.startswith("vmae_jax") and (why := _complaint(room, name)):
                found.append(f"{path.relative_to(ROOT)}:{line}: {why}")
    _report(found)


def test_systems_do_not_import_each_other():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in PACKAGE.glob("systems/*.py")
        if path.name != "__init__.py"
        for line, name in _imports_of(path)
        if name.startswith("vmae_jax.systems.") and not _is_shared(name)
    ]
    _report(found)


def test_libraries_stay_where_they_belong():
    found = []
    for path in _files():
        place = path.relative_to(PACKAGE).as_posix()
        for line, name in _imports_of(path):
            library = name.split(".")[0]
            if (
                library in BANNED
                or (library in JAX and place.startswith("data/"))
                or (library == "flax" and place.startswith("ops/"))
                or (library in CONFINED and not place.startswith(CONFINED[library]))
            ):
                found.append(f"vmae_jax/{place}:{line}: imports {name}")
    _report(found)


def test_files_are_named_after_what_they_do():
    vague = {"utils", "util", "helpers", "common", "misc"}
    _report([str(path.relative_to(ROOT)) for path in _files() if path.stem in vague])


# Text that ties the repository to one machine: a home or mount of somebody's, a package index.
MACHINE_PATH = re.compile(r"(?<![\w.~$}>)/-])/(?:root|home|Users|work|opt)/[\w.-]+")
PACKAGE_INDEX = re.compile(
    r"//[\w.-]*(?:p[y]pi|p[y]thonhosted|n[p]mjs)[\w.-]*|--(?:extra-)?index-url"
)


def _tracked_text() -> Iterator[tuple[Path, str]]:
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: the tracked files are unknown")
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        if path.is_file():
            data = path.read_bytes()
            if b"\0" not in data[:8192]:
                yield path, data.decode("utf-8", errors="replace")


def test_tracked_files_name_no_machine_and_no_package_index():
    found = []
    for path, text in _tracked_text():
        if path == Path(__file__).resolve():
            continue
        for number, line in enumerate(text.splitlines(), 1):
            for match in (MACHINE_PATH.search(line), PACKAGE_INDEX.search(line)):
                if match:
                    found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}")
    _report(found)


# The checks above pass on a clean tree whatever they do, so these feed them something to find.


@pytest.mark.parametrize(
    ("room", "name", "allowed"),
    [
        ("models", "vmae_jax.ops.patches.Grid", True),
        ("models", "vmae_jax.models.layers.Linear", True),
        ("models", "vmae_jax.data.video", False),
        ("ops", "vmae_jax.models.vit", False),
        ("ops", "vmae_jax.config", False),
        ("config", "vmae_jax.ops.masking", True),
        ("train", "vmae_jax.systems.base.System", True),
        ("train", "vmae_jax.systems.videomae", False),
        ("train", "vmae_jax.evals.probe", False),
        ("tools", "vmae_jax.systems.videomae", True),
        ("train", "vmae_jax.__version__", True),
    ],
)
def test_the_rule_itself(room, name, allowed):
    assert (_complaint(room, name) is None) == allowed


def test_imports_are_found_inside_functions_and_relative_ones_resolved():
    source = "import a.b\ndef f():\n    from ..data import video\n    from . import x\n"
    found = [name for _, name in _imports(source, "vmae_jax.models")]
    assert found == ["a.b", "vmae_jax.data.video", "vmae_jax.models.x"]


def test_machine_paths_and_indexes_are_recognised():
    assert MACHINE_PATH.search("see /" + "home/someone/data")
    assert MACHINE_PATH.search('"/' + 'root/.cache"')
    assert not MACHINE_PATH.search("DIR/" + "root/x, a/" + "home/b and ~/" + "root/c")
    assert PACKAGE_INDEX.search("https:/" + "/mirror.pypi.example/simple")
    assert not PACKAGE_INDEX.search("https:/" + "/github.com/x")
