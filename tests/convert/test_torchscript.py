"""TorchScript archives are read without PyTorch, and without executing what they hold."""

import collections
import importlib.util
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from vmae_jax.convert import sources
from vmae_jax.convert.engine import ConversionError

WIDTH = 4


def tower(prefix="visual."):
    """A tower of one block with the names and layouts of CLIP's code, in half precision."""
    rng = np.random.default_rng(0)
    shapes = {
        "class_embedding": (WIDTH,),
        "positional_embedding": (1 + 4, WIDTH),
        "conv1.weight": (WIDTH, 3, 2, 2),
        "proj": (WIDTH, 3),
        "transformer.resblocks.0.attn.in_proj_weight": (3 * WIDTH, WIDTH),
        "transformer.resblocks.0.attn.in_proj_bias": (3 * WIDTH,),
    }
    linears = {"attn.out_proj": (WIDTH, WIDTH), "mlp.c_fc": (8, WIDTH), "mlp.c_proj": (WIDTH, 8)}
    for name, shape in linears.items():
        shapes[f"transformer.resblocks.0.{name}.weight"] = shape
        shapes[f"transformer.resblocks.0.{name}.bias"] = shape[:1]
    for name in (
        "ln_pre",
        "ln_post",
        "transformer.resblocks.0.ln_1",
        "transformer.resblocks.0.ln_2",
    ):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (WIDTH,)
    return {prefix + n: rng.normal(size=s).astype(np.float16) for n, s in shapes.items()}


TEXT = {
    "transformer.resblocks.0.ln_1.weight": np.ones(2, np.float16),
    "positional_embedding": np.ones((3, 2), np.float16),
    "logit_scale": np.array(1.5, np.float16),
    "vocab_size": np.array(7, np.int64),
}


def archive(path, content, *, pickled=None, stored=True):
    """Writes a TorchScript archive as PyTorch does: opcodes of its own pickler, tensors beside."""
    storages = []

    def text(value):
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    def number(value):
        return b"J" + value.to_bytes(4, "little", signed=True)

    def several(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    def written(value):
        if isinstance(value, dict):
            items = b"".join(text(name) + written(one) for name, one in value.items())
            return b"c__torch__.clip\nModule\n)\x81}(" + items + b"ub"
        if isinstance(value, np.ndarray):
            dtype = {"float16": "Half", "int64": "Long"}[value.dtype.name]
            storages.append(value.tobytes())
            steps = [step // value.itemsize for step in value.strides]
            storage = text("storage") + f"ctorch\n{dtype}Storage\n".encode()
            storage += text(str(len(storages) - 1)) + text("cpu") + number(value.size)
            arguments = b"((" + storage + b"tQ" + number(0) + several(value.shape) + several(steps)
            hooks = b"\x89ccollections\nOrderedDict\n)R"
            return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + hooks + b"tR"
        return {True: b"\x88", False: b"\x89"}[value]

    if pickled is None:
        pickled = b"\x80\x02" + written(content) + b"."
    kind = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("clip/data.pkl", pickled)
        file.writestr("clip/constants.pkl", b"\x80\x02).")
        file.writestr("clip/code/__torch__/clip.py", "raise SystemError('executed')")
        for number_, storage in enumerate(storages):
            file.writestr(f"clip/data/{number_}", storage)
    return path


def nested(arrays):
    """Arrays by dotted names -> modules in modules, each with an attribute that is no tensor."""
    tree = {"training": False}
    for name, array in arrays.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {"training": True})
        node[last] = array
    return tree


def test_an_original_archive_becomes_a_tower_and_a_report(tmp_path):
    source = sources.read(archive(tmp_path / "clip.pt", nested(tower() | TEXT)))
    assert source.tower and source.family == "CLIP" and source.tubelet == (1, 2, 2)
    assert source.report.ignored == {
        "transformer.resblocks.0.ln_1.weight": "of the text tower",
        "positional_embedding": "of the text tower",
        "logit_scale": "of the comparison between pictures and texts",
        "vocab_size": "a size, no weight",
    }
    assert set(source.report.mapped) == set(tower())
    weight = tower()["visual.conv1.weight"]
    kernel = source.arrays["patch_embed/kernel"]
    assert kernel.dtype == np.float32 and kernel[3 * 2 + 1, 0] == weight[0, 1, 1, 0]
    bias = tower()["visual.transformer.resblocks.0.attn.in_proj_bias"]
    np.testing.assert_array_equal(source.arrays["blocks/attn/k_bias"][0], bias[WIDTH : 2 * WIDTH])
    assert "transformer.resblocks" not in str(source.arrays.keys())


class Bomb:
    """A pickle that writes a file when it is read by an unrestricted reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_malicious_archive_is_refused_and_its_code_does_not_run(tmp_path):
    mark = tmp_path / "executed"
    bombs = {
        "call": pickle.dumps(Bomb(mark), protocol=2),
        "eval": b"\x80\x02cbuiltins\neval\nX\x02\x00\x00\x001+\x85R.",
        # A method of something that is allowed, by a dotted name.
        "dotted": b"\x80\x04\x8c\x0bcollections\x8c\x15OrderedDict.__class__\x93.",
        "near": b"\x80\x02c__torch__evil\nsystem\n.",
    }
    for name, pickled in bombs.items():
        path = archive(tmp_path / f"{name}.pt", {}, pickled=pickled)
        with pytest.raises(ConversionError, match="because reading it could execute"):
            sources.read(path)
    assert not mark.exists()
    pickle.loads(bombs["call"])  # the bomb works, where nothing restrains it
    assert mark.exists()


def test_damaged_archives_are_told_from_dangerous_ones(tmp_path):
    beyond = np.lib.stride_tricks.as_strided(np.ones(4, np.float16), (1 << 20,), (2,))
    stretched = np.broadcast_to(np.ones(1, np.float16), (1 << 20,))
    whole = archive(tmp_path / "whole.pt", nested(tower())).read_bytes()
    cases = {
        "packed": archive(tmp_path / "packed.pt", nested(tower()), stored=False),
        "no_module": archive(tmp_path / "a.pt", {}, pickled=b"\x80\x02}."),
        "calls_a_module": archive(
            tmp_path / "b.pt", {}, pickled=b"\x80\x02c__torch__.a\nB\n(X\x01\x00\x00\x00atR."
        ),
    }
    for name, array in (("beyond", beyond), ("stretched", stretched)):
        file = archive(tmp_path / f"{name}.pt", {"w": np.ones(3, np.float16)})
        cases[name] = _with_shape(file, tmp_path / f"{name}_.pt", array)
    cases["truncated"] = tmp_path / "truncated.pt"
    cases["truncated"].write_bytes(
        whole.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v2\n(", 1)
    )
    for name, path in cases.items():
        with pytest.raises(ConversionError, match="damaged, truncated or no TorchScript archive"):
            sources.read(path)
            pytest.fail(name)


def test_an_archive_that_holds_itself_comes_to_an_end(tmp_path):
    # The module is memoised (q\x00) and becomes its own attribute (h\x00).
    pickled = b"\x80\x02c__torch__.a\nB\n)\x81q\x00}(X\x01\x00\x00\x00ah\x00ub."
    with pytest.raises(ConversionError, match="holds no tensors"):
        sources.read(archive(tmp_path / "a.pt", {}, pickled=pickled))


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed (extra: convert)"
)
@pytest.mark.slow
def test_what_pytorch_itself_writes_is_read_number_by_number(tmp_path):
    files = [tmp_path / "clip.pt", tmp_path / "visual.pth"]
    (tmp_path / "model.py").write_text(SCRIPTED)  # PyTorch compiles from a file
    subprocess.run([sys.executable, tmp_path / "model.py", *files], check=True)
    whole, visual = sources.read(tmp_path / "clip.pt"), sources.read(tmp_path / "visual.pth")
    assert (whole.family, visual.family) == ("CLIP", "CLIP's image tower")
    assert whole.arrays.keys() == visual.arrays.keys() and whole.tower
    for name, array in visual.arrays.items():
        np.testing.assert_array_equal(whole.arrays[name], array)
    ignored = collections.Counter(whole.report.ignored.values())
    assert ignored["of the text tower"] == 16


SCRIPTED = """
import sys
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(w), nn.LayerNorm(w)
        self.attn = nn.MultiheadAttention(w, 2)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(w, 4 * w), "c_proj": nn.Linear(4 * w, w)})
    def forward(self, x):
        return x

class Transformer(nn.Module):
    def __init__(self, w, depth):
        super().__init__()
        self.resblocks = nn.Sequential(*[Block(w) for _ in range(depth)])
    def forward(self, x):
        return self.resblocks(x)

class Visual(nn.Module):
    def __init__(self, w=8):
        super().__init__()
        self.conv1 = nn.Conv2d(3, w, 4, 4, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(w))
        self.positional_embedding = nn.Parameter(torch.randn(10, w))
        self.ln_pre, self.ln_post = nn.LayerNorm(w), nn.LayerNorm(w)
        self.transformer = Transformer(w, 2)
        self.proj = nn.Parameter(torch.randn(w, 5))
    def forward(self, x):
        return self.conv1(x)

class Clip(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual, self.transformer = Visual(), Transformer(6, 1)
        self.token_embedding, self.ln_final = nn.Embedding(7, 6), nn.LayerNorm(6)
        self.positional_embedding = nn.Parameter(torch.randn(3, 6))
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
    def forward(self, x):
        return self.visual(x)

model = Clip().half()
torch.jit.script(model).save(sys.argv[1])
torch.save(model.visual.state_dict(), sys.argv[2])
"""


def _with_shape(file, path, array):
    """A copy of an archive with one tensor, which is said to have another shape."""
    steps = [step // 2 for step in array.strides]
    old = b"(J" + (3).to_bytes(4, "little") + b"t(J" + (1).to_bytes(4, "little") + b"t"
    new = b"(J" + array.size.to_bytes(4, "little") + b"t(J" + steps[0].to_bytes(4, "little") + b"t"
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(path, "w") as changed:
        for entry in whole.infolist():
            content = whole.read(entry)
            assert entry.filename != "clip/data.pkl" or old in content
            changed.writestr(entry.filename, content.replace(old, new))
    return path
