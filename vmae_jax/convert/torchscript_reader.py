"""Turns a TorchScript archive into safetensors. Run as a program of its own, never imported.

    python torchscript_reader.py SOURCE FOLDER

Such an archive, as CLIP was released in, is a zip of a program, of tensors, and of a pickle that
holds the program's modules. The program is never read. The pickle is, by an unpickler for which a
module is an empty shell with attributes and a tensor a stretch of the zip; any other name in it is
refused, whatever it stands for. PyTorch is not needed. The results are torch_reader.py's.
"""

import json
import math
import pathlib
import pickle
import re
import sys
import zipfile

import numpy as np
from safetensors.numpy import save_file

DTYPES = {
    "HalfStorage": np.float16,
    "BFloat16Storage": np.uint16,  # the upper half of float32; NumPy has no such numbers
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
MOST_PICKLED = 256 << 20  # bytes; CLIP's have less than one million


class Refused(Exception):
    """The pickle asks for something that is neither module nor tensor."""


class Module:
    """Attributes of a module, and nothing that could be called."""

    __slots__ = ("attributes",)

    def __setstate__(self, state: object) -> None:
        self.attributes = state


class _First:
    """Stands for functions that hand on their first argument, typed."""

    __slots__ = ()

    def __call__(self, value: object, *types: object) -> object:
        return value


class _Tensor:
    """Stands for the function that makes a tensor of a stretch of memory."""

    __slots__ = ()

    def __call__(self, storage: object, offset: int, size: tuple, stride: tuple, *_: object):
        numbers = [offset, *size, *stride]
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        inside = all(type(n) is int and n >= 0 for n in numbers) and last < len(storage)
        # A step of zero would make much of little.
        if math.prod(size) and not (inside and math.prod(size) <= len(storage)):
            raise ValueError(f"a tensor of shape {size} reaches beyond its {len(storage)} numbers")
        steps = [step * storage.itemsize for step in stride]
        view = np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)
        return np.array(view)


class Unpickler(pickle.Unpickler):
    """Reads the modules of one archive."""

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        super().__init__(archive.open(f"{folder}data.pkl"))
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> object:
        """What a name in the pickle stands for."""
        if module == "__torch__" or module.startswith("__torch__."):
            return Module
        if module == "torch" and name in DTYPES:
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor()
        if module == "torch.jit._pickle" and re.fullmatch(r"build_\w+list|restore_type_tag", name):
            return _First()
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise Refused(f"{module}.{name}")

    def persistent_load(self, pid: object) -> np.ndarray:
        """The numbers of a storage, one after the other."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or not re.fullmatch(r"\d+", key):
            raise ValueError(f"an unknown kind of storage, {pid!r:.60}")
        entry = self._archive.getinfo(f"{self._folder}data/{key}")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError("a tensor is compressed")
        numbers = np.frombuffer(self._archive.read(entry), DTYPES[dtype], count)
        if dtype == "BFloat16Storage":
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers


def main(source: str, folder: str) -> None:
    """Reads `source`, writes into `folder`."""
    try:
        with zipfile.ZipFile(source) as archive:
            tensors, ignored = _contents(_modules(archive))
    except Refused as error:
        _fail(
            f"refused, because reading it could execute code that it brings: it asks for {error}. "
            "Ask its author for safetensors"
        )
    except Exception as error:  # damaged files raise many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        _fail(f"damaged, truncated or no TorchScript archive ({reason:.300})")
    if not tensors:
        _fail("holds no tensors")
    save_file(tensors, pathlib.Path(folder) / "weights.safetensors")
    (pathlib.Path(folder) / "ignored.json").write_text(json.dumps(ignored))


def _modules(archive: zipfile.ZipFile) -> Module:
    """The outermost module."""
    pickles = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
    if len(pickles) != 1 or pickles[0].file_size > MOST_PICKLED:
        raise ValueError(f"{len(pickles)} times data.pkl, or it is too large")
    folder = pickles[0].filename.removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise ValueError("its numbers have the most significant byte first")
    root = Unpickler(archive, folder).load()
    if not isinstance(root, Module):
        raise TypeError(f"holds a {type(root).__name__} where a module was expected")
    return root


def _contents(root: Module) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors by name, and other attributes of some size with the reason they are left out."""
    tensors, ignored, seen, waiting = {}, {}, {id(root)}, [("", root)]
    while waiting:
        prefix, module = waiting.pop()
        for name, value in module.attributes.items():
            if isinstance(value, Module):
                if id(value) not in seen:  # an archive that holds itself must come to an end
                    waiting.append((f"{prefix}{name}.", value))
                seen.add(id(value))
            elif isinstance(value, np.ndarray):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, list | tuple | dict):
                ignored[f"{prefix}{name}"] = f"a {type(value).__name__} beside the weights"
    return tensors, ignored


def _fail(sentence: str) -> None:
    print(sentence, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main(*sys.argv[1:])
