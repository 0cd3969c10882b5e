"""Exports a model as StableHLO: programs that JAX alone runs, with their weights beside them."""

import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax import export

from vmae_jax.convert.engine import unflatten
from vmae_jax.convert.export import save_arrays
from vmae_jax.systems.base import System

PLATFORMS = ("cpu", "cuda", "tpu")


def save_programs(
    folder: pathlib.Path,
    arrays: Mapping[str, np.ndarray],
    system: System,
    *,
    video: tuple[int, int, int, int],
    licence: str,
) -> list[pathlib.Path]:
    """Writes `features`, and `logits` of a classifier, as serialized `jax.export` programs.

    Each takes the dict that safetensors reads from model.safetensors and a uint8 video
    [B, T, H, W, C], with any B: features [B, D] are what the head sees, or the mean of the final
    tokens; tokens [B, N, D] are those; logits [B, K]. All are float32.

    Args:
      folder: made if it is not there.
      arrays: our path -> float32 array.
      system: built with an attention that lowers on all platforms ("xla").
      video: (frames, height, width, channels).
      licence: of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "vmae_jax", "licence": licence}
    save_arrays(folder / "model.safetensors", arrays, metadata)
    encoder = system.encoder
    programs = {
        "features": encoder.pooled,
        "tokens": lambda params, batch: encoder.tokens(params, batch, encoder.depth),
    }
    if system.logits is not None:
        programs["logits"] = system.logits
    files = [folder / "model.safetensors"]
    for name, program in programs.items():
        files.append(folder / f"{name}.stablehlo")
        files[-1].write_bytes(_serialized(program, arrays, video))
    return files


def _serialized(
    program: Callable, arrays: Mapping[str, np.ndarray], video: tuple[int, ...]
) -> bytes:
    def on_video(params: dict[str, jax.Array], video: jax.Array) -> jax.Array:
        return program(unflatten(params), {"video": video})

    (batch,) = export.symbolic_shape("b")
    params = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}
    clip = jax.ShapeDtypeStruct((batch, *video), np.uint8)
    return export.export(jax.jit(on_video), platforms=PLATFORMS)(params, clip).serialize()
