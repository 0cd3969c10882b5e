import itertools
import threading
import types

import jax
import numpy as np
import pytest

from vmae_jax.train.feed import DataStalledError, DeviceFeed
from vmae_jax.train.sharding import batch_sharding, make_mesh


def batches():
    for i in itertools.count():
        rows = np.arange(8, dtype=np.int32) + 8 * i
        yield types.SimpleNamespace(arrays={"index": rows}, number=i)


def feed_of(iterator, timeout_s=30.0):
    return DeviceFeed(iterator, batch_sharding(make_mesh(1)), timeout_s=timeout_s)


def test_batches_come_in_order_on_the_mesh():
    feed = feed_of(batches())
    for i in range(5):
        delivery = feed.next()
        assert delivery.host.number == i
        np.testing.assert_array_equal(delivery.arrays["index"], np.arange(8) + 8 * i)
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


def test_stalled_pipeline_is_an_error_in_bounded_time():
    release = threading.Event()

    def stuck():
        release.wait()
        yield from batches()

    feed = feed_of(stuck(), timeout_s=0.2)
    with pytest.raises(DataStalledError, match=r"no batch came for 0\.2 s"):
        feed.next()
    release.set()
    feed.close()
