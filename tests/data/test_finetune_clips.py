"""A fine-tuning clip through the whole pipeline, against the released recipe written out slowly."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vmae_jax.data.pipeline import ClipPipeline, PipelineOptions
from vmae_jax.data.video import read_frames, write_video

BICUBIC = Image.Resampling.BICUBIC


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three videos of moving gradients and edges, 50, 40 and 9 frames."""
    root = tmp_path_factory.mktemp("videos")
    y, x = np.indices((60, 84))
    for i, count in enumerate((50, 40, 9)):
        frames = [
            np.stack([(3 * x + 5 * t) % 256, 4 * y, 255 * ((x // 12 + y // 12 + t // 4) % 2)], -1)
            for t in range(count)
        ]
        write_video(root / f"v{i}.mp4", np.uint8(frames), fps=25, gop=8)
    (root / "list.txt").write_text("v0.mp4 2\nv1.mp4 0\nv2.mp4 1\n")
    return root


def finetune(videos, **changes):
    base = PipelineOptions(
        manifest=str(videos / "list.txt"),
        frames=4,
        stride=3,
        sampling="window",
        size=(32, 32),
        crop="resized",
        filter="bilinear",
        randaugment=(7, 4, 0.5),
        repeats=2,
    )
    return dataclasses.replace(base, **changes)


# --- The released recipe, frame by frame, with the draws in the order in which they are made ----


def slow_frames(rng, count, frames=4, stride=3):
    window = frames * stride
    if count <= window:
        places = [*np.linspace(0, count, count // stride)]
        places += [count] * (frames - len(places))
        return [int(min(place, count - 1)) for place in places]
    end = window + rng.integers(count - window)
    start = end - window
    return [int(min(place, end - 1)) for place in np.linspace(start, end, frames)]


def slow_operations(rng, count=4):
    names = [
        *("auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize"),
        *("solarize_add", "color", "contrast", "brightness", "sharpness"),
        *("shear_x", "shear_y", "translate_x", "translate_y"),
    ]
    operations = []
    for _ in range(count):
        name = names[rng.integers(15)]
        applied = rng.random() < 0.5
        sign = -1 if rng.integers(2) else 1
        level = min(max(rng.normal(7, 0.5), 0), 10)
        if applied:
            operations.append((name, level / 10, sign))
    return operations


def slow_apply(picture, name, m, sign):
    grey, (width, height) = (128, 128, 128), picture.size

    def affine(*matrix):
        return picture.transform(
            picture.size, Image.Transform.AFFINE, matrix, resample=BICUBIC, fillcolor=grey
        )

    factor = 1 + sign * 0.9 * m
    lut = [min(255, i + int(110 * m)) if i < 128 else i for i in range(256)] * 3
    results = {
        "auto_contrast": lambda: ImageOps.autocontrast(picture),
        "equalize": lambda: ImageOps.equalize(picture),
        "invert": lambda: ImageOps.invert(picture),
        "rotate": lambda: picture.rotate(sign * 30 * m, resample=BICUBIC, fillcolor=grey),
        "posterize": lambda: ImageOps.posterize(picture, 4 - int(4 * m)),
        "solarize": lambda: ImageOps.solarize(picture, 256 - int(256 * m)),
        "solarize_add": lambda: picture.point(lut),
        "color": lambda: ImageEnhance.Color(picture).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(picture).enhance(factor),
        "brightness": lambda: ImageEnhance.Brightness(picture).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(picture).enhance(factor),
        "shear_x": lambda: affine(1, sign * 0.3 * m, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, sign * 0.3 * m, 1, 0),
        "translate_x": lambda: affine(1, 0, sign * 0.45 * m * width, 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, sign * 0.45 * m * height),
    }
    return results[name]()


def slow_crop(rng, height, width):
    for _ in range(10):
        area = rng.uniform(0.08, 1) * height * width
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = rng.integers(height - h + 1)
            left = rng.integers(width - w + 1)
            return top, left, h, w
    raise AssertionError("the frames of this test always hold a crop")


def slow_resize(pixels, size):
    height, width = pixels.shape[:2]
    out = np.zeros((*size, 3))
    for i in range(size[0]):
        for j in range(size[1]):
            y = max((i + 0.5) * height / size[0] - 0.5, 0)
            x = max((j + 0.5) * width / size[1] - 0.5, 0)
            rows, columns = (
                (int(y), min(int(y) + 1, height - 1)),
                (int(x), min(int(x) + 1, width - 1)),
            )
            for row, down in zip(rows, (1 - y % 1, y % 1), strict=True):
                for column, along in zip(columns, (1 - x % 1, x % 1), strict=True):
                    out[i, j] += down * along * pixels[row, column]
    return out


def test_a_finetuning_batch_is_the_released_recipe(videos):
    counts = {0: 50, 1: 40, 2: 9}
    with ClipPipeline(finetune(videos), batch_videos=3, seed=5) as pipeline:
        batch, order = next(pipeline), pipeline._order
    assert batch.arrays["video"].shape == (6, 4, 32, 32, 3)
    seen = set()
    for row, record in enumerate(batch.records.tolist()):
        rng = order.rng(row)
        frames = read_frames(str(videos / f"v{record}.mp4"), slow_frames(rng, counts[record]))
        for repeat in range(2):
            operations = slow_operations(rng)
            seen |= {name for name, _, _ in operations}
            pictures = [Image.fromarray(frame) for frame in frames]
            for operation in operations:
                pictures = [slow_apply(picture, *operation) for picture in pictures]
            top, left, h, w = slow_crop(rng, *frames.shape[1:3])
            got = batch.arrays["video"][2 * row + repeat]
            for frame, picture in zip(got, pictures, strict=True):
                cut = np.asarray(picture, float)[top : top + h, left : left + w]
                off = np.abs(frame - slow_resize(cut, (32, 32)))
                # Rounding; a shear or translation may round a level differently before.
                assert off.max() < 1.51 and (off > 0.51).mean() < 0.01
    assert len(seen) >= 5  # the seed draws enough to be a test of the operations' order, too


def test_a_single_crop_of_a_video_may_be_augmented_here_and_cut_on_the_device(videos):
    chosen = finetune(videos, repeats=1, resize="device", canvas=(60, 84), crop="none")
    with ClipPipeline(chosen, batch_videos=3, seed=5) as pipeline:
        augmented = next(pipeline).arrays["source"]
    plain = dataclasses.replace(chosen, randaugment=())
    with ClipPipeline(plain, batch_videos=3, seed=5) as pipeline:
        assert (next(pipeline).arrays["source"] != augmented).any(axis=(1, 2, 3, 4)).any()
