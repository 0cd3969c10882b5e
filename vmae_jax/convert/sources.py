"""Reads weights of any origin into arrays by our paths, with the facts that are known of them.

Checkpoints of our own runs are orbax's and are read by train/checkpoints.py; `of_checkpoint` makes
the same of them. PyTorch files are read by a process of their own (torch_reader.py, and
torchscript_reader.py for those that hold a program).
"""

import dataclasses
import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from vmae_jax.convert import clip
from vmae_jax.convert.engine import ConversionError, Params, Report, flatten, to_ours
from vmae_jax.convert.families import recognise
from vmae_jax.ops.patches import Tubelet

TORCH_SUFFIXES = (".pth", ".pyth", ".pt", ".bin", ".ckpt")
UNKNOWN_LICENCE = "unknown; the source does not say"
_INDEX = "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights and what is known of them.

    Attributes:
      path: where they were found.
      format: what kind of file or folder that is.
      family: whose names they came under.
      arrays: our path -> float32 array.
      report: what became of every name.
      sha256: of the bytes of the file (of several: of all in the order of their names); of a
        checkpoint of ours, `hash_arrays` of its parameters.
      licence: in words.
      tubelet: (frames, rows, columns) of a patch; None: only the config tells.
      channels: of the video; None: only the config tells.
      config: content of the config.json beside them, {} where there is none.
      processor: content of transformers' preprocessor_config.json, likewise.
    """

    path: str
    format: str
    family: str
    arrays: dict[str, np.ndarray]
    report: Report
    sha256: str
    licence: str
    tubelet: Tubelet | None = None
    channels: int | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    processor: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def pretraining(self) -> bool:
        """Whether these are the weights of a pretraining network, with what predicts."""
        marks = ("mask_token", "decoder/", "align/")
        return any(path.startswith(marks) for path in self.arrays)

    @property
    def tower(self) -> bool:
        """Whether this is an image tower: it teaches, and is no system by itself."""
        return clip.is_tower(self.arrays)

    def describe(self) -> str:
        """The source in a few lines: what, whose, which bytes, under which licence."""
        return (
            f"source: {self.path} ({self.format}, names of {self.family})\n"
            f"SHA-256: {self.sha256}\nlicence: {self.licence}"
        )


def is_weights(path: str | pathlib.Path) -> bool:
    """Whether `read` can read it: a weights file, or a folder with one in it."""
    path = pathlib.Path(path)
    return not path.is_dir() or bool(_files_of(path))


def read(path: str | pathlib.Path) -> Source:
    """Reads a safetensors or PyTorch file, a folder of transformers, or one of our own exports.

    Raises:
      ConversionError: nothing there, an unknown, damaged or dangerous file, or names of no family
        that is known here.
    """
    path = pathlib.Path(path)
    files = _given_files(path)
    torch = files[0].suffix in TORCH_SUFFIXES
    if not torch and files[0].suffix != ".safetensors":
        good = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise ConversionError(f"{path} is no weights file; their names end in one of {good}")
    arrays, ignored, metadata = _read_torch(files[0]) if torch else _read_safetensors(files)
    # What lies beside a file says something of it only where the file has the name for that.
    beside = path if path.is_dir() else path.parent if path.stem == "model" else None
    config = _beside(beside, "config.json")
    facts = {
        "path": str(path),
        "format": f"{'PyTorch' if torch else 'safetensors'} {'folder' if beside else 'file'}",
        "sha256": _sha256(files),
        "config": config,
    }
    if "encoder/patch_embed/kernel" in arrays or clip.is_tower(arrays):
        tower = config.get("image_tower", {})
        return Source(
            family="vmae_jax",
            arrays={name: np.asarray(array, np.float32) for name, array in arrays.items()},
            report=Report({name: (name,) for name in arrays}, ignored),
            licence=metadata.get("licence", UNKNOWN_LICENCE),
            tubelet=tuple(tower["tubelet"]) if "tubelet" in tower else None,
            channels=tower.get("channels"),
            **facts,
        )
    family = recognise(arrays)
    arrays, report = to_ours(arrays, family.table)
    return Source(
        family=family.table.name,
        arrays=arrays,
        report=dataclasses.replace(report, ignored={**report.ignored, **ignored}),
        licence=metadata.get("licence") or _card_licence(beside) or family.licence,
        tubelet=family.tubelet,
        channels=family.channels,
        processor=_beside(beside, "preprocessor_config.json"),
        **facts,
    )


def sha256(path: str | pathlib.Path) -> str:
    """SHA-256 as `read` would state it, without reading any weights.

    Raises:
      ConversionError: nothing there.
    """
    return _sha256(_given_files(pathlib.Path(path)))


def of_checkpoint(path: str, params: Params, part: str, config: Mapping[str, Any]) -> Source:
    """The source that a checkpoint of ours is.

    Args:
      path: for messages.
      params: nested dict of its numpy arrays.
      part: "params" or "ema", which of its trees they are.
      config: the recipe it was made with.
    """
    arrays = flatten(params)
    note = "the average of the parameters (EMA) was taken" if part == "ema" else None
    return Source(
        path=path,
        format="checkpoint",
        family="vmae_jax",
        arrays=arrays,
        report=Report({name: (name,) for name in arrays}, {}, notes=(note,) if note else ()),
        sha256=hash_arrays(arrays),
        licence="that of your run: of its data, and of the weights that it began from",
        config=config,
    )


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, shapes and float32 bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name], "<f4").data)
    return digest.hexdigest()


def _given_files(path: pathlib.Path) -> list[pathlib.Path]:
    files = _files_of(path) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ConversionError(f"no weights at {path}")
    return files


def _files_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """The weights files of a folder, in the order of their names."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
    if not (folder / _INDEX).is_file():
        return []
    names = sorted(set(_json(folder / _INDEX).get("weight_map", {}).values()))
    if odd := [n for n in names if pathlib.Path(n).name != n or not n.endswith(".safetensors")]:
        raise ConversionError(f"{folder / _INDEX} names files outside of its folder: {odd[0]!r}")
    if missing := [n for n in names if not (folder / n).is_file()]:
        raise ConversionError(f"{folder} lacks {', '.join(missing)}, which {_INDEX} names")
    return [folder / name for name in names]


# Arrays by name; what else was there, with the reason it is left out; the file's own notes.
_Content = tuple[dict[str, np.ndarray], dict[str, str], dict[str, str]]


def _read_safetensors(files: list[pathlib.Path]) -> _Content:
    arrays: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    for file in files:
        try:
            arrays |= load_file(file)
            with safe_open(file, "numpy") as opened:
                metadata |= opened.metadata() or {}
        except (SafetensorError, TypeError, ValueError, OSError) as error:
            raise ConversionError(f"{file} is damaged or no safetensors file: {error}") from error
    return arrays, {}, metadata


def _read_torch(file: pathlib.Path) -> _Content:
    name = "torchscript_reader.py" if _holds_a_program(file) else "torch_reader.py"
    reader = pathlib.Path(__file__).with_name(name)
    with tempfile.TemporaryDirectory(prefix="vmae_torch_") as folder:
        # -P: nothing is imported from the folder of the script or of the user.
        command = [sys.executable, "-P", str(reader), str(file), folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 2:
            raise ConversionError(f"{file} cannot be read: {done.stderr.strip().splitlines()[-1]}")
        if done.returncode:
            raise ConversionError(
                f"the process that reads {file} ended with status {done.returncode} "
                f"(out of memory?): {done.stderr.strip()[-500:]}"
            )
        arrays = load_file(pathlib.Path(folder) / "weights.safetensors")
        ignored = json.loads((pathlib.Path(folder) / "ignored.json").read_text())
    return arrays, ignored, {}


def _holds_a_program(file: pathlib.Path) -> bool:
    """Whether a PyTorch file is a TorchScript archive."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:  # older than zips, or damaged, which its reader finds out
        return False


def _sha256(files: list[pathlib.Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _card_licence(folder: pathlib.Path | None) -> str | None:
    """The licence that a model card of the Hub states at its top."""
    card = folder / "README.md" if folder else None
    if card is None or not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    match = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    match = match and re.search(r"^license:\s*(\S.*?)\s*$", match[1], re.MULTILINE)
    return f"{match[1]} (its model card)" if match else None


def _beside(folder: pathlib.Path | None, name: str) -> dict[str, Any]:
    return _json(folder / name) if folder and (folder / name).is_file() else {}


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConversionError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds a {type(content).__name__}; expected an object")
    return content
