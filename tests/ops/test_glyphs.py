import numpy as np

from vmae_jax.ops.glyphs import glyphs
from vmae_jax.ops.hog import hog


def drawn(picture):
    """The glyphs of a grey picture, without its border."""
    return np.asarray(glyphs(hog(picture[..., None], cell=9), cell=9))[9:-9, 9:-9, 0]


def test_lines_run_along_edges():
    rows, columns = np.mgrid[:45, :45].astype(np.float32)
    # A picture that changes from left to right has upright edges.
    upright = drawn(np.cos(columns))[:9, :9]
    assert upright[:, 4].min() == 1.0 and upright[4, 0] == upright[4, -1] == 0.0
    # Bin 0 begins with level edges and is drawn at its middle, 10 degrees.
    level = drawn(np.cos(rows))[:9, :9]
    assert level[4, 2:7].min() > 0.7 and level[0].max() == level[-1].max() == 0.0
    # Equal along lines that fall to the right, as does the main diagonal of the picture.
    falling = drawn(np.cos(rows - columns))[:9, :9]
    assert np.trace(falling) > 4 * np.trace(falling[:, ::-1])


def test_brightness_is_the_value_and_what_is_negative_is_not_drawn():
    histograms = np.zeros((1, 9, 1, 3), np.float32)
    histograms[0, 4] = [0.5, -1.0, 2.0]
    picture = np.asarray(glyphs(histograms, cell=8))
    assert picture.shape == (8, 24, 1)
    assert [picture[:, 8 * i : 8 * i + 8].max() for i in range(3)] == [0.5, 0.0, 1.0]
