import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax import chips as chips_lib
from vmae_jax import config as config_lib
from vmae_jax import systems
from vmae_jax.convert.engine import flatten, to_ours, to_theirs, unflatten
from vmae_jax.convert.fit import fit
from vmae_jax.convert.mvit import mvit_table
from vmae_jax.evals.reconstruct import make_reconstruct
from vmae_jax.ops.block_masks import to_tokens
from vmae_jax.ops.hog import hog_targets
from vmae_jax.ops.losses import masked_mse
from vmae_jax.ops.patches import patchify
from vmae_jax.systems.maskfeat import make_network, mvit_parts, vit_parts
from vmae_jax.variants import MVIT_VARIANTS, MViTSpec, without_last_stride


def small_config(**masking):
    """Two stages of one block; a token of the last stands for 2 frames of 8 x 8 pixels."""
    spec = MViTSpec(8, (1, 1), 1, strides=((1, 1, 1), (1, 2, 2)), kv_stride=(1, 2, 2))
    config = config_lib.maskfeat_defaults().unlock()
    config.model.encoder = config_lib.mvit(spec)
    config.model.encoder.remat = "none"
    config.model.dtype = "float32"
    config.masking.cell = (2, 16, 16)
    config.masking.update(masking)
    config.data.update(frames=4, size=(32, 48))
    config_lib.validate(config)
    return config.lock()


def clips(count=2):
    video = np.random.default_rng(0).integers(0, 256, (count, 4, 32, 48, 3), np.uint8)
    return {"video": video, "index": np.arange(count, dtype=np.int32)}


KEYS = jax.random.split(jax.random.key(1), 2)


@pytest.fixture(scope="module")
def system():
    return systems.build(small_config(encoder=("tube", 0.4)))


@pytest.fixture(scope="module")
def params(system):
    return jax.jit(system.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def batch(system):
    return jax.jit(lambda batch: system.targets(None, batch, KEYS))(clips())


def test_targets_are_histograms_of_the_clips_as_they_are_seen(batch):
    # Clips are mirrored or not, and normalised; neither scale nor shift changes a histogram.
    seen = batch["seen"] * 0.225 + 0.45
    originals, mirrored = clips()["video"] / 255, clips()["video"][:, :, :, ::-1] / 255
    for clip, original, mirror in zip(seen, originals, mirrored, strict=True):
        assert np.allclose(clip, original, atol=1e-5) or np.allclose(clip, mirror, atol=1e-5)
    pixels = np.rint(np.asarray(seen) * 255)
    np.testing.assert_allclose(batch["target"], hog_targets(pixels, (2, 8, 8)), atol=1e-6)
    # A cell holds 4 x 4 tokens of the stem and 2 x 2 of the last block.
    hidden = np.asarray(batch["hidden"]).reshape(2, 2, 4, 2, 6, 2)
    np.testing.assert_array_equal(batch["weight"], hidden[:, :, :, 0, :, 0].reshape(2, 48))
    assert hidden.any(axis=(1, 2, 3, 4, 5)).all() and not hidden.all()


def test_loss_is_the_mean_over_hidden_tokens_and_hidden_pixels_are_not_seen(system, params, batch):
    network = make_network(mvit_parts(small_config(), chips_lib.local()), 27)

    def run(video):
        pred = network.apply(params, video, batch["hidden"])
        return pred.sum(), (pred, system.loss(params, {**batch, "seen": video}, KEYS, False)[0])

    run = jax.jit(jax.value_and_grad(run, has_aux=True))
    (_, (pred, (total, weight))), seen = run(batch["seen"])
    counted = np.asarray(batch["weight"], bool)
    errors = np.square(np.asarray(pred) - np.asarray(batch["target"]))[counted]
    np.testing.assert_allclose(total / weight, errors.mean(), rtol=1e-5)
    # The stem's window reaches 3 pixels up and to the left, so visible tokens see no more than
    # the last 3 rows and columns of hidden cells above and left of them.
    cells = np.asarray(batch["hidden"]).reshape(2, 2, 8, 12)[:, :, ::4, ::4]
    seen = np.abs(np.asarray(seen)).reshape(2, 4, 2, 16, 3, 16, 3).max(axis=(1, 6))
    for clip, row, column in np.argwhere(cells[:, 0]):
        assert seen[clip, row, :13, column, :13].max() == 0.0
    visible = ~cells[:, 0]
    assert seen.max(axis=(2, 4))[visible].min() > 0.0


def test_targets_are_float32_when_the_network_is_not(batch):
    config = small_config(encoder=("tube", 0.4)).unlock()
    config.model.dtype = "bfloat16"
    system = systems.build(config)
    half = jax.jit(lambda batch: system.targets(None, batch, KEYS))(clips())
    assert half["seen"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(half["target"], batch["target"])


def test_pictures_show_glyphs_where_features_are_predicted(system, params):
    videos = make_reconstruct(system)(params, None, clips(), jax.random.key(1))
    original, masked, glyphs, prediction = videos.values()
    np.testing.assert_array_equal(original, clips()["video"])
    hidden = (masked == 128).all(axis=-1)
    assert hidden.any() and not hidden.all()
    np.testing.assert_array_equal(masked[~hidden], original[~hidden])
    # Both frames of a tubelet show its one histogram; elsewhere the true one, dimmed.
    np.testing.assert_array_equal(glyphs[:, ::2], glyphs[:, 1::2])
    dimmed = np.rint(0.3 * glyphs.astype(float))
    assert np.abs(prediction - dimmed)[~hidden].max() <= 1
    assert np.abs(prediction - dimmed)[hidden].max() > 20


def test_pixels_of_first_frames_are_the_second_choice():
    config = small_config(target="pixels")
    system = systems.build(config)
    made = jax.jit(lambda batch: system.targets(None, batch, KEYS))(clips())
    first = np.asarray(made["seen"])[0, 2, 8:16, 16:24]  # slot 1, row 1, column 2 of 4 x 6
    patch = (first - first.mean()) / np.sqrt(first.var(ddof=1) + 1e-6)
    np.testing.assert_allclose(made["target"][0, 24 + 6 + 2], patch.ravel(), atol=1e-4)
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    assert shapes["head"]["proj"]["bias"].shape == (8 * 8 * 3,)


@pytest.mark.parametrize(
    ("masking", "words"),
    [
        ({"cell": (2, 16, 12)}, r"cell=\(2, 16, 12\) must be multiples of \(2, 8, 8\)"),
        ({"cell": (2, 32, 32)}, "width=48 is not a positive multiple of 32"),
        ({"cell": (2, 16)}, "frames, rows and columns"),
        ({"encoder": ("block", 0.4)}, "unknown mask 'block'; choose one of cube, tube"),
        ({"encoder": ("frame", 0.1)}, "hides 0 of 2"),
        ({"hog_cell": 3}, "hog_cell=3 pixels do not divide patches of 8x8"),
        ({"target": "dino"}, "masking.target='dino': choose one of 'hog', 'pixels'"),
    ],
)
def test_what_cannot_be_hidden_or_predicted_is_refused_in_words(masking, words):
    with pytest.raises(config_lib.ConfigError, match=words):
        small_config(**masking)


def test_images_are_clips_of_one_frame():
    config = config_lib.maskfeat_defaults("vit").unlock()
    config.model.encoder.update(width=16, depth=1, heads=2, remat="none")
    config.model.dtype = "float32"
    config.data.size = (64, 64)
    config_lib.validate(config)
    system = systems.build(config)
    video = np.random.default_rng(0).integers(0, 256, (2, 1, 64, 64, 3), np.uint8)

    def run(params, video):
        batch = system.targets(None, {"video": video}, KEYS)
        return system.loss(params, batch, KEYS, True)[0], batch

    params = jax.jit(system.init)(jax.random.key(0))
    assert params["encoder"]["pos_embed"].shape == (17, 16)
    (total, weight), batch = jax.jit(run)(params, video)
    assert batch["target"].shape == (2, 16, 108)
    assert 0 < weight <= 2 * round(0.4 * 16)
    # A fresh head predicts next to nothing: the mean square of histograms of noise.
    targets = np.asarray(batch["target"])[np.asarray(batch["weight"], bool)]
    np.testing.assert_allclose(total / weight, np.square(targets).mean(), rtol=0.1)
    assert system.encoder.grid(1) == (1, 4, 4)


# reference/maskfeat.md 11: weights drawn by the names of PyTorch, one clip, a mask of 150 cells.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "pred", "loss"),
    [
        ("S", [0.53483, -0.7392, 1.25954, -1.25931, 0.3947], 1.148142),
        ("L", [-0.63234, 0.50757, 0.51712, -1.62228, -0.19435], 1.400339),
    ],
)
def test_published_sizes_give_the_numbers_of_the_released_code(size, pred, loss):
    config = config_lib.maskfeat_defaults().unlock()
    config.model.encoder = config_lib.mvit(without_last_stride(MVIT_VARIANTS[size]))
    config.model.encoder.attention, config.model.dtype = "xla_f32", "float32"
    network = make_network(mvit_parts(config, chips_lib.local()), 108)
    table = mvit_table()
    drawn = {n: drawn_by_name(n, a.shape) for n, a in to_theirs(zeros(network), table).items()}
    params = unflatten(fit(*to_ours(drawn, table), network.shapes).arrays)
    noise = np.random.RandomState(0).standard_normal((1, 3, 16, 224, 224)).astype(np.float32)
    clip = noise.transpose(0, 2, 3, 4, 1)
    mask = jnp.asarray(np.random.RandomState(1).random_sample((1, 8, 7, 7)) < 0.4)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(network.apply)(params, clip, to_tokens(mask, (8, 56, 56)))
    hidden = np.asarray(to_tokens(mask, (8, 14, 14)))
    target = hog_targets(clip, (2, 16, 16))
    assert hidden.sum() == 600
    chosen = np.asarray(target)[hidden]
    first, last = [0.27079, 0.13061, 0.21014, 0.04102, 0.06115], [0.44599, 0.42343, 0.4546]
    np.testing.assert_allclose(chosen[0, :5], first, atol=1e-5)
    np.testing.assert_allclose(chosen[-1, -3:], last, atol=1e-5)
    np.testing.assert_allclose(np.asarray(found)[hidden][0, :5], pred, atol=2e-4)
    total, weight = masked_mse(found, target, hidden)
    np.testing.assert_allclose(total / weight, loss, atol=5e-5)


@pytest.mark.slow
def test_published_image_model_gives_the_number_of_the_released_code():
    config = config_lib.maskfeat_defaults("vit").unlock()
    config.model.encoder.attention, config.model.dtype = "xla_f32", "float32"
    network = make_network(vit_parts(config, chips_lib.local()), 108)
    assert network.num_params == 85_882_476
    params = unflatten(
        {path: as_released(path, leaf.shape) for path, leaf in flatten(network.shapes).items()}
    )
    noise = np.random.RandomState(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    clip = noise.transpose(0, 2, 3, 1)[:, None]
    hidden = np.random.RandomState(1).random_sample((2, 14, 14)).reshape(2, 196) < 0.4
    with jax.default_matmul_precision("highest"):
        found = network.apply(params, patchify(clip, (1, 16, 16)), hidden, grid=(1, 14, 14))
    target = hog_targets(clip, (1, 16, 16))
    first = [0.25595, 0.24343, 0.38088, 0.29823, 0.26017]
    np.testing.assert_allclose(np.asarray(target)[hidden][0, :5], first, atol=1e-5)
    wanted = [-2.6979, 2.50942, -0.1226, 0.37541, -0.452]
    np.testing.assert_allclose(np.asarray(found)[hidden][0, :5], wanted, atol=2e-4)
    total, weight = masked_mse(found, target, hidden)
    np.testing.assert_allclose(total / weight, 1.217551, atol=5e-5)


def zeros(network):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), network.shapes)


def drawn_by_name(name, shape):
    """The reference's rule: each tensor from a generator seeded by its published name."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if z.ndim >= 2:
        z /= np.sqrt(np.prod(z.shape[1:]))
    else:
        z = 1 + 0.1 * z if name.endswith("weight") else 0.1 * z
    return z.astype(np.float32)


def as_released(path, shape):
    """A parameter of the image model drawn by its published name, reference/maskfeat.md 9."""
    kinds = {"kernel": "weight", "scale": "weight"}
    path = path.removeprefix("encoder/").replace("head/norm", "pred_head/transforms/0/0")
    path = path.replace("head/proj", "pred_head/projections/0").replace("embed/", "embed/proj/")
    *parents, last = path.split("/")
    if parents[:1] == ["blocks"]:
        names = [".".join(["blocks", str(i), *parents[1:]]) for i in range(shape[0])]
        return np.stack([one_released(name, last, shape[1:], kinds) for name in names])
    return one_released(".".join(parents), last, shape, kinds)


def one_released(module, last, shape, kinds):
    if last in ("cls_token", "mask_token", "pos_embed"):
        return drawn_by_name(last, (1, np.prod(shape[:-1], dtype=int), shape[-1])).reshape(shape)
    if last[1:] == "_bias":  # a third of the released one
        both = drawn_by_name(f"{module}.qkv.bias", (3 * shape[0],))
        return np.split(both, 3)["qkv".index(last[0])]
    name = f"{module}.{kinds.get(last, last)}"
    if module == "patch_embed.proj" and last == "kernel":
        return drawn_by_name(name, (shape[1], 3, 16, 16)).transpose(2, 3, 1, 0).reshape(shape)
    return drawn_by_name(name, shape[::-1]).T
