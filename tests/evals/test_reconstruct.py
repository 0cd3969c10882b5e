import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax import config as config_lib
from vmae_jax import systems
from vmae_jax.evals.reconstruct import (
    as_rgb,
    grid_picture,
    make_draw,
    make_reconstruct,
    side_by_side,
)
from vmae_jax.ops.losses import pixel_targets
from vmae_jax.ops.patches import patchify
from vmae_jax.systems.videomae import _with_statistics_of

TUBELET = (2, 4, 4)


def small_config(normalize):
    config = config_lib.pretrain_defaults()
    for stack, width in (("encoder", 32), ("decoder", 16)):
        config.model[stack].update(width=width, depth=1, heads=2, remat="none")
    config.model.tubelet = TUBELET
    config.model.dtype = "float32"
    config.data.update(frames=4, size=(16, 24))
    config.masking.decoder = ("running_cell", 0.5)
    config.masking.encoder = ("tube", 0.75)
    config.masking.normalize_target = normalize
    config_lib.validate(config)
    return config


def clips(count=2):
    video = np.random.default_rng(0).integers(0, 256, (count, 4, 16, 24, 3), np.uint8)
    return {"video": video, "index": np.arange(count, dtype=np.int32)}


@pytest.mark.parametrize("normalize", [True, False])
def test_visible_patches_stay_and_hidden_ones_are_grey_or_predicted(normalize):
    system = systems.build(small_config(normalize))
    batch, params = clips(), system.init(jax.random.key(0))
    videos = make_reconstruct(system)(params, None, batch, jax.random.key(1))
    labels = list(videos)
    assert labels[:2] == ["original", "masked"]
    assert len(labels) == (4 if normalize else 3)
    # Only a prediction that borrows something may say so, and it must.
    assert [label for label in labels if "true patch statistics" in label] == labels[3:]
    np.testing.assert_array_equal(videos["original"], batch["video"])

    patches = {name: np.asarray(patchify(video, TUBELET)) for name, video in videos.items()}
    hidden = (patches["masked"] == 128).all(axis=-1)  # 0.5 on the [0, 1] scale
    assert hidden.sum(axis=1).tolist() == [2 * int(0.75 * 24)] * 2  # all of them, in 2 slots
    for name in labels[1:]:
        np.testing.assert_array_equal(patches[name][~hidden], patches["original"][~hidden])
    for name in labels[2:]:
        assert (patches[name][hidden] != 128).any(axis=-1).all(), "a hidden patch was left grey"


def test_true_statistics_undo_the_normalisation_exactly():
    patches = jnp.asarray(np.random.default_rng(0).random((2, 5, 32 * 3)), jnp.float32)
    normalised = pixel_targets(patches, channels=3, normalize=True)
    np.testing.assert_allclose(_with_statistics_of(normalised, patches, 3), patches, atol=1e-6)


def test_drawing_works_on_a_mesh_wider_than_the_clips():
    system = systems.build(small_config(True))
    params = system.init(jax.random.key(0))
    alone = make_draw(system)(params, None, clips(3), jax.random.key(1))
    from vmae_jax.train.sharding import make_mesh

    with jax.set_mesh(make_mesh(2)):
        shared = make_draw(system)(params, None, clips(3), jax.random.key(1))
    assert np.abs(alone.astype(int) - shared.astype(int)).max() <= 1


def test_grid_has_a_labelled_row_per_kind_and_shows_frames_in_order():
    # Frame t of clip b is a flat colour, so the picture can be read.
    shades = np.array([[10, 60, 110, 160], [35, 85, 135, 185]], np.uint8)
    video = np.broadcast_to(shades[:, :, None, None, None], (2, 4, 120, 120, 3)).copy()
    picture = grid_picture({"original": video, "masked": 255 - video}, max_frames=4)
    middle_row = [picture[16 + 60, 4 + 60 + 124 * t, 0] for t in range(4)]
    assert middle_row == shades[0].tolist()
    below = [picture[16 + 60 + 140, 4 + 60 + 124 * t, 0] for t in range(4)]
    assert below == (255 - shades[0]).tolist()


def test_side_by_side_is_a_video_of_even_size():
    video = np.zeros((1, 3, 33, 47, 3), np.uint8)
    label = "prediction with true patch statistics"
    frames = side_by_side({"original": video, label: video}, 0)
    assert frames.shape[0] == 3 and frames.dtype == np.uint8
    assert frames.shape[1] % 2 == 0 and frames.shape[2] % 2 == 0


def test_one_channel_is_drawn_grey():
    frame = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    np.testing.assert_array_equal(as_rgb(frame)[..., 2], frame[..., 0])
