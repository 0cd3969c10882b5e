"""Exported programs, run by a process that knows JAX and safetensors and nothing of ours."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from vmae_jax.convert.engine import flatten
from vmae_jax.convert.stablehlo import save_programs
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.vit import Classifier
from vmae_jax.ops.patches import patchify
from vmae_jax.variants import StackSpec

PROGRAM = """
import pathlib, sys, jax, numpy as np
from jax import export
from safetensors.numpy import load_file
folder, given, out = sys.argv[1:]
weights = load_file(pathlib.Path(folder) / "model.safetensors")
video = np.load(given)
results = {}
for path in pathlib.Path(folder).glob("*.stablehlo"):
    program = export.deserialize(bytearray(path.read_bytes()))
    results[path.stem] = program.call(weights, video)
single = program.call(weights, video[:1])  # of any number of clips
np.testing.assert_allclose(single, results[path.stem][:1], rtol=1e-5, atol=1e-6)
assert not [name for name in sys.modules if name.startswith("vmae_jax")]
np.savez(out, **results)
"""


def test_programs_run_without_us_on_any_number_of_clips(tmp_path):
    net = functional(
        lambda rngs: Classifier(
            StackSpec(16, 2, 2), StackOptions(), values=2 * 8 * 8 * 3, num_classes=5, rngs=rngs
        )
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), net.shapes)

    def patches(batch):
        return patchify(batch["video"].astype(jnp.float32) / 255, (2, 8, 8))

    def tokens(params, batch, layer):
        assert layer == 2
        return net.module(params).encoder(patches(batch), grid=(2, 2, 2))

    def pooled(params, batch):
        return net.apply(params, patches(batch), grid=(2, 2, 2), method="features")

    def logits(params, batch):
        return net.apply(params, patches(batch), grid=(2, 2, 2))

    system = SimpleNamespace(
        encoder=SimpleNamespace(depth=2, tokens=tokens, pooled=pooled), logits=logits
    )
    files = save_programs(
        tmp_path / "out", flatten(params), system, video=(4, 16, 16, 3), licence="MIT"
    )
    assert [file.name for file in files] == [
        "model.safetensors",
        "features.stablehlo",
        "tokens.stablehlo",
        "logits.stablehlo",
    ]
    video = np.random.default_rng(0).integers(0, 256, (3, 4, 16, 16, 3), np.uint8)
    np.save(tmp_path / "video.npy", video)
    here = [str(tmp_path / name) for name in ("out", "video.npy", "results.npz")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", PROGRAM, *here], check=True, cwd=tmp_path, env=environment
    )
    with np.load(tmp_path / "results.npz") as results:
        batch = {"video": jnp.asarray(video)}
        for name, expected in {
            "features": pooled(params, batch),
            "tokens": tokens(params, batch, 2),
            "logits": logits(params, batch),
        }.items():
            assert results[name].dtype == np.float32
            np.testing.assert_allclose(results[name], expected, rtol=1e-5, atol=1e-5)
