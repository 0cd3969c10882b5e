import numpy as np

from vmae_jax.ops.heat import heat


def test_larger_numbers_are_lighter_and_the_ends_hold_what_lies_beyond():
    colours = np.asarray(heat(np.linspace(-1, 2, 61).reshape(1, 61)))
    assert colours.shape == (1, 61, 3) and colours.min() == 0 and colours.max() == 1
    light = colours[0] @ [0.299, 0.587, 0.114]
    assert (light[:21] == 0).all() and (np.diff(light[20:41]) > 0).all()
    assert np.ptp(light[40:]) == 0 and light[40] > 0.95
