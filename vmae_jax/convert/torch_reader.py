"""Turns a PyTorch file into safetensors. Run as a program of its own, never imported by vmae_jax.

    python torch_reader.py SOURCE FOLDER

A PyTorch file is a pickle, and a pickle can execute code. This process reads it with PyTorch's
restricted unpickler and an allow-list of one class; nothing else is tried where that refuses. It
writes FOLDER/weights.safetensors and FOLDER/ignored.json ({entry: reason}), or prints one sentence
on its standard error and exits with status 2.
"""

import argparse
import json
import pathlib
import pickle
import sys
from collections.abc import Mapping

WRAPPERS = ("model", "module", "state_dict", "model_state")  # in the released loaders' order
OLDEST = (2, 6)  # before it, the restricted unpickler could be circumvented
REASONS = {
    "optimizer": "state of the optimizer",
    "scaler": "state of the loss scaler",
    "lr_scheduler": "state of the schedule",
    "model_ema": "an average of the weights; the released scripts evaluate the weights themselves",
    "args": "options of the training script",
    "epoch": "progress of the training",
}


def main(source: str, folder: str) -> None:
    """Reads `source`, writes into `folder`."""
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        _fail(f"PyTorch files need PyTorch ({error}): pip install 'vmae_jax[convert]'")
    if tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2]) < OLDEST:
        _fail(
            f"PyTorch {torch.__version__} is installed; reading files of others is safe from "
            f"{OLDEST[0]}.{OLDEST[1]} on: pip install --upgrade torch"
        )
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        _fail(
            "refused, because reading it could execute code that it brings: "
            f"{_shortened(error)}. Ask its author for safetensors, or for a file that holds "
            "nothing but tensors"
        )
    except Exception as error:  # damaged files raise many kinds
        reason = f"{type(error).__name__}: {_shortened(error)}"
        _fail(f"damaged, truncated or no PyTorch file ({reason})")
    if not isinstance(loaded, Mapping):
        _fail(f"holds a {type(loaded).__name__} where names and tensors were expected")
    ignored = {}
    for wrapper in WRAPPERS:
        if isinstance(loaded.get(wrapper), Mapping):
            others = {name: value for name, value in loaded.items() if name != wrapper}
            ignored = {str(name): _reason(name, value) for name, value in others.items()}
            loaded = loaded[wrapper]
            break
    tensors = {}
    for name, value in loaded.items():
        if isinstance(value, torch.Tensor):
            # A copy of its own: safetensors refuses tensors that share memory.
            tensors[str(name)] = value.detach().to_dense().contiguous().clone()
        else:
            ignored[str(name)] = _reason(name, value)
    if not tensors:
        _fail(f"holds no tensors; its entries are {', '.join(ignored) or 'none'}")
    save_file(tensors, pathlib.Path(folder) / "weights.safetensors")
    (pathlib.Path(folder) / "ignored.json").write_text(json.dumps(ignored))


def _reason(name: object, value: object) -> str:
    return REASONS.get(name, f"a {type(value).__name__} beside the weights")


def _shortened(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "..."


def _fail(sentence: str) -> None:
    print(sentence, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main(*sys.argv[1:])
