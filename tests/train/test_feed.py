import itertools
import threading
import types

import jax
import numpy as np
import pytest

from vmae_jax.train.feed import DeviceFeed
from vmae_jax.train.sharding import batch_sharding, make_mesh


def batches():
    for i in itertools.count():
        rows = np.arange(8, dtype=np.int32) + 8 * i
        yield types.SimpleNamespace(
            arrays={"index": rows}, number=i, names=lambda i=i: [f"{i}.mp4"], failures=["x"] * i
        )


def feed_of(iterator):
    return DeviceFeed(iterator, batch_sharding(make_mesh(1)))


def test_batches_come_in_order_on_the_mesh():
    feed = feed_of(batches())
    for i in range(5):
        delivery = feed.next()
        assert delivery.host.number == i
        np.testing.assert_array_equal(delivery.arrays["index"], np.arange(8) + 8 * i)
        assert delivery.arrays["notes"].sum(axis=0)[0] == i
        assert len(delivery.arrays["index"].sharding.device_set) == jax.device_count()
    feed.close()


def test_error_of_the_pipeline_reaches_the_loop():
    def failing():
        yield from itertools.islice(batches(), 1)
        raise OSError("storage went away")

    feed = feed_of(failing())
    feed.next()
    with pytest.raises(OSError, match="storage went away"):
        feed.next()
    feed.close()


def test_waiting_ends_when_told_to_stop():
    release = threading.Event()

    def stuck():
        release.wait()
        yield from batches()

    feed = feed_of(stuck())
    asked = itertools.count()
    assert feed.next(stop=lambda: next(asked) >= 3) is None
    release.set()
    feed.close()


def test_time_in_which_the_devices_are_busy_is_not_waiting():
    release = threading.Event()

    def slow():
        release.wait()
        yield from batches()

    feed = feed_of(slow())
    asked = itertools.count()

    def busy():
        if next(asked) == 5:
            release.set()
        return True

    assert feed.next(busy=busy).wait_s == 0.0
    assert feed.next().wait_s >= 0.0
    feed.close()
