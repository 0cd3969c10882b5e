"""Files of foreign weights. Only safetensors is read here: it cannot execute code."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from vmae_jax.convert.engine import Params, Report, Table, export_arrays, import_arrays


def load_safetensors(path: str | Path, table: Table, template: Params) -> tuple[Params, Report]:
    """Reads a safetensors file in foreign names into our parameters; see `import_arrays`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path.name} is not a .safetensors file; convert it to one first")
    return import_arrays(load_file(path), table, template)


def save_safetensors(path: str | Path, params: Params, table: Table) -> None:
    """Writes our parameters to a safetensors file in foreign names, float32."""
    arrays = export_arrays(params, table)
    save_file({name: np.asarray(array, np.float32) for name, array in arrays.items()}, path)
