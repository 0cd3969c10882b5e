"""Clips cut on the device are those that the host would have cut."""

import jax
import numpy as np
import pytest

from vmae_jax.config import pretrain_defaults
from vmae_jax.data.transforms import Box, crop_resize
from vmae_jax.systems.inputs import clip_spec, clips


@pytest.mark.parametrize("resample", ["antialias", "bilinear"])
def test_the_filter_of_the_recipe_is_that_of_the_device(resample):
    config = pretrain_defaults()
    config.data.update(resize="device", size=(12, 16), filter=resample)
    source = np.random.default_rng(0).integers(0, 256, (1, 2, 50, 60, 3), np.uint8)
    batch = {"source": source, "box": np.float32([[3, 5, 40, 48]])}
    got = np.asarray(jax.jit(lambda batch: clips(config, batch))(batch)).astype(int)
    want = crop_resize(source[0], Box(5, 3, 48, 40), (12, 16), resample)
    assert np.abs(got[0] - want).max() <= 1  # the other filter is off by half the range


@pytest.mark.parametrize(("windows", "clips_a_row"), [(False, 4), (True, 1)])
def test_a_source_clip_serves_the_crops_of_its_frames(windows, clips_a_row):
    config = pretrain_defaults()
    config.data.update(resize="device", repeats=4, repeat_windows=windows)
    assert clip_spec(config)["source"].clips == clips_a_row
