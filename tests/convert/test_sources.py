import hashlib
import importlib.util
import json
import os
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from vmae_jax.convert import sources
from vmae_jax.convert.engine import ConversionError

CONVOLUTION = np.arange(8 * 3 * 2 * 4 * 4, dtype=np.float32).reshape(8, 3, 2, 4, 4)
NAMES = {  # the least that tells a family
    "patch_embed.proj.weight": CONVOLUTION,
    "patch_embed.proj.bias": np.arange(8, dtype=np.float32),
    "head.bias": np.ones(5, np.float32),
}
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed (extra: convert)"
)


def test_safetensors_with_its_facts(tmp_path):
    path = tmp_path / "released.safetensors"
    save_file(NAMES, path)
    source = sources.read(path)
    assert (source.family, source.tubelet, source.channels) == ("videomae fine-tuned", (2, 4, 4), 3)
    assert source.arrays["encoder/patch_embed/kernel"][1, 0] == CONVOLUTION[0, 1, 0, 0, 0]
    expected = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
    assert source.sha256 == expected.stdout.split()[0]
    assert "CC BY-NC 4.0" in source.licence and source.sha256 in source.describe()
    assert not source.pretraining


def test_bfloat16_is_widened(tmp_path):
    halves = {name: array.astype(ml_dtypes.bfloat16) for name, array in NAMES.items()}
    save_file(halves, tmp_path / "a.safetensors")
    array = sources.read(tmp_path / "a.safetensors").arrays["encoder/patch_embed/bias"]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, np.arange(8))


def test_a_folder_of_transformers_in_shards(tmp_path):
    base = "videomae.embeddings.patch_embeddings.projection"
    save_file({f"{base}.weight": CONVOLUTION}, tmp_path / "b.safetensors")
    save_file({f"{base}.bias": NAMES["patch_embed.proj.bias"]}, tmp_path / "a.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "b.safetensors", "y": "a.safetensors"}}))
    (tmp_path / "config.json").write_text(json.dumps({"num_frames": 8}))
    (tmp_path / "README.md").write_text('---\ntags: [a]\nlicense: "cc-by-nc-4.0"\n---\n# Card\n')
    source = sources.read(tmp_path)
    assert set(source.arrays) == {"encoder/patch_embed/kernel", "encoder/patch_embed/bias"}
    assert source.config == {"num_frames": 8}
    assert source.licence == '"cc-by-nc-4.0" (its model card)'
    both = (tmp_path / "a.safetensors").read_bytes() + (tmp_path / "b.safetensors").read_bytes()
    assert source.sha256 == hashlib.sha256(both).hexdigest()
    index.write_text(json.dumps({"weight_map": {"x": "../b.safetensors"}}))
    with pytest.raises(ConversionError, match="outside of its folder"):
        sources.read(tmp_path)
    index.write_text(json.dumps({"weight_map": {"x": "c.safetensors"}}))
    with pytest.raises(ConversionError, match=r"lacks c\.safetensors"):
        sources.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.safetensors", b"\x08" + b"\0" * 9, "damaged or no safetensors file"),
        ("a.h5", b"", "is no weights file; their names end in one of"),
        ("b.safetensors", None, "no weights at"),
    ],
)
def test_what_is_no_weights_file(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConversionError, match=words):
        sources.read(tmp_path / name)


def test_a_truncated_file_is_damaged(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(NAMES, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ConversionError, match="damaged or no safetensors"):
        sources.read(path)


def test_without_pytorch_the_message_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(ConversionError, match=r"pip install 'vmae_jax\[convert\]'"):
        sources.read(tmp_path / "a.pth")


def test_an_old_pytorch_is_not_trusted(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("__version__ = '2.5.1+cpu'\nTensor = object")
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "safetensors" / "__init__.py").write_text("")
    (tmp_path / "safetensors" / "torch.py").write_text("save_file = None")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConversionError, match=r"PyTorch 2.5.1\+cpu is installed.*2.6"):
        sources.read(_written(tmp_path / "a.pth", b""))


class Bomb:
    """A pickle that writes a file when it is read by an unrestricted reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@needs_torch
@pytest.mark.slow
def test_a_malicious_pickle_is_refused_and_its_code_does_not_run(tmp_path):
    mark = tmp_path / "executed"
    plain = _written(tmp_path / "plain.pth", pickle.dumps({"model": Bomb(mark)}))
    zipped = tmp_path / "zipped.pth"
    _torch(
        "import os\n"
        "class Bomb:\n"
        "    def __reduce__(self): return os.system, ('touch ' + sys.argv[2],)\n"
        "torch.save({'model': {'w': torch.ones(2)}, 'args': Bomb()}, sys.argv[1])",
        zipped,
        mark,
    )
    assert not mark.exists()
    for path in (plain, zipped):
        with pytest.raises(ConversionError, match="because reading it could execute"):
            sources.read(path)
        assert not mark.exists()
    pickle.loads(plain.read_bytes())  # the bomb works, where nothing restrains it
    assert mark.exists()


@needs_torch
@pytest.mark.slow
def test_a_released_checkpoint_with_its_optimizer_and_options(tmp_path):
    save_file(NAMES, tmp_path / "a.safetensors")
    _torch(
        "from argparse import Namespace\nfrom safetensors.torch import load_file\n"
        "weights = {'module.' + n: t.half() for n, t in load_file(sys.argv[2]).items()}\n"
        "torch.save({'module': weights, 'args': Namespace(lr=1.0), 'epoch': 3,\n"
        "            'optimizer': {'state': {0: torch.ones(3)}}, 'odd': [1]}, sys.argv[1])",
        tmp_path / "a.pth",
        tmp_path / "a.safetensors",
    )
    source = sources.read(tmp_path / "a.pth")
    assert source.report.mapped["module.head.bias"] == ("head/bias",)
    assert source.report.ignored == {
        "args": "options of the training script",
        "epoch": "progress of the training",
        "optimizer": "state of the optimizer",
        "odd": "a list beside the weights",
    }
    kernel = source.arrays["encoder/patch_embed/kernel"]
    assert kernel.dtype == np.float32 and kernel[1, 0] == 32
    truncated = _written(tmp_path / "b.pth", (tmp_path / "a.pth").read_bytes()[:2000])
    with pytest.raises(ConversionError, match="damaged, truncated or no PyTorch file"):
        sources.read(truncated)
    _torch("torch.save([torch.ones(2)], sys.argv[1])", tmp_path / "c.pth")
    with pytest.raises(ConversionError, match="holds a list where names and tensors"):
        sources.read(tmp_path / "c.pth")


def _torch(code, *arguments):
    command = [sys.executable, "-c", f"import sys, torch\n{code}", *map(str, arguments)]
    subprocess.run(command, check=True)


def _written(path, content):
    path.write_bytes(content)
    return path
