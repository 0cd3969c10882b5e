"""Validation while fine-tuning, the test, and extracted features see the same pixels of a clip."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from vmae_jax import assemble, systems
from vmae_jax import config as config_lib
from vmae_jax.convert.engine import flatten
from vmae_jax.data.pipeline import ClipPipeline
from vmae_jax.data.video import write_video
from vmae_jax.data.windows import Sliding, Window, WindowFeed
from vmae_jax.evals import passes
from vmae_jax.tools import extract

FRAMES, COUNT = 4, 14  # 10 to spare: the clip in the middle begins at 5 by every rule
SIZES = {"wide.mp4": (24, 44), "tall.mp4": (50, 26), "square.mp4": (32, 32)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A classifier of random weights and videos of several aspects."""
    folder, rng = tmp_path_factory.mktemp("equal"), np.random.default_rng(0)
    config = config_lib.finetune_defaults()
    config.model.encoder.update(width=16, depth=2, heads=2, remat="none")
    config.model.update(tubelet=(2, 8, 8), dtype="float32", num_classes=3, head_scale=20.0)
    config.data.update(frames=FRAMES, size=(16, 16), stride=1)
    (folder / "config.json").write_text(config_lib.to_json(config))
    params = jax.device_get(systems.build(config).init(jax.random.key(0)))
    save_file(flatten(params), folder / "model.safetensors")
    for name, size in SIZES.items():
        write_video(folder / name, rng.integers(0, 256, (COUNT, *size, 3), np.uint8), fps=10)
    (folder / "list.csv").write_text("\n".join(["path", *SIZES]) + "\n")
    return folder


def clips(made, views=None):
    """Clips of each video as evaluation sees them, without `views` while training: uint8
    [3 videos, clips, T, H, W, C]."""
    recipe = assemble.open_model(str(made)).config
    tested = passes.as_tested(recipe, manifest=str(made / "list.csv"), root="", views=views)
    options = dataclasses.replace(assemble.pipeline_options(tested), workers=0)
    with ClipPipeline(options, batch_videos=3, seed=0, once=True) as pipeline:
        return next(pipeline).arrays["video"].reshape(3, options.clips, FRAMES, 16, 16, 3)


def test_of_the_same_clip_all_see_the_same(made, tmp_path):
    validation = clips(made)
    # Three crops of one clip, of which the second is the one in the middle.
    test = clips(made, views=(1, 3))
    np.testing.assert_array_equal(validation[:, 0], test[:, 1])
    # Something else would be seen if it were not looked for: the crops differ.
    assert (test[:2, 0] != test[:2, 1]).any(axis=(1, 2, 3, 4)).all()

    model = f"--weights={made}"
    flags = [model, f"--out={tmp_path}", f"--manifest={made / 'list.csv'}", "--step=5"]
    assert extract.main([*flags, "--pooling=head"]) == 0
    system, params = (m := assemble.open_model(str(made))).system, m.params
    seen = {"video": validation[:, 0]}
    pooled = np.asarray(system.encoder.pooled(params, seen))
    found = []
    for row, name in enumerate(SIZES):
        with np.load(tmp_path / f"{name}.npz") as arrays:
            assert arrays["frames"][1].tolist() == [5, 6, 7, 8]
            found.append(arrays["features"][1])
            # In a batch of other size sums are taken in another order.
            np.testing.assert_allclose(found[-1], pooled[row], rtol=0, atol=1e-5)
    head = params["head"]
    logits = np.stack(found) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, system.logits(params, seen), rtol=0, atol=1e-4)


def test_extraction_cuts_the_array_that_validation_cuts(made):
    prepared = extract.prepare(
        str(made), None, extract.Settings(step=5), manifest=str(made / "list.csv")
    )
    validation = clips(made)
    arguments = {"sliding": Sliding(FRAMES, 1, 5), "options": prepared.options}
    with WindowFeed(prepared.source, [0, 1, 2], workers=1, ahead=9, **arguments) as feed:
        windows = [(i, e) for i, e in feed if isinstance(e, Window)]
    middle = [w.frames for _, w in windows if w.index[0] == 5]
    np.testing.assert_array_equal(np.stack(middle), validation[:, 0])
