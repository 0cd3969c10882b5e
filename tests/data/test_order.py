"""The order of a run is a function of the seed alone."""

import numpy as np
import pytest

from vmae_jax.data.order import Order


def records(order, epoch):
    begin = epoch * order.epoch_videos
    return [order.locate(p)[2] for p in range(begin, begin + order.epoch_videos)]


def test_positions_count_through_epochs_and_drop_the_remainder():
    order = Order(num_videos=10, batch_videos=4, seed=0, shuffle=False)
    assert order.steps_per_epoch == 2  # 10 // 4; two videos are left out
    assert [order.locate(p) for p in (0, 7, 8, 17)] == [(0, 0, 0), (0, 7, 7), (1, 0, 0), (2, 1, 1)]


def test_each_epoch_is_another_permutation():
    order = Order(num_videos=12, batch_videos=4, seed=7)
    epochs = [records(order, e) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert len({tuple(e) for e in epochs}) == 3
    assert records(Order(12, 4, 7), 1) == epochs[1]  # epoch 1 first, nothing before it
    assert records(Order(12, 4, 8), 1) != epochs[1]


def test_dropped_videos_change_from_epoch_to_epoch():
    order = Order(num_videos=7, batch_videos=4, seed=0)
    assert set().union(*(records(order, e) for e in range(20))) == set(range(7))


def test_every_video_is_equally_likely_at_every_place():
    order = Order(num_videos=5, batch_videos=5, seed=1)
    counts = np.zeros((5, 5))
    for epoch in range(2000):
        counts[np.arange(5), records(order, epoch)] += 1
    # 400 expected, standard deviation 17.9; five of them
    assert np.abs(counts - 400).max() < 90


def test_processes_take_contiguous_blocks_of_the_global_batch():
    order = Order(num_videos=100, batch_videos=12, seed=0)
    whole = list(order.local_positions(3, 0, 1))
    assert whole == list(range(36, 48))
    parts = [p for i in range(4) for p in order.local_positions(3, i, 4)]
    assert parts == whole


def test_generators_depend_on_seed_position_and_attempt_only():
    order = Order(num_videos=100, batch_videos=10, seed=5)
    draw = order.rng(42).random(4)
    np.testing.assert_array_equal(order.rng(42).random(4), draw)
    others = [order.rng(43), order.rng(42, attempt=1), Order(100, 10, 6).rng(42)]
    for other in others:
        assert not np.allclose(other.random(4), draw)
    # the same numbers elsewhere in the run, whatever the batch size
    np.testing.assert_array_equal(Order(100, 20, 5).rng(42).random(4), draw)


def test_substitutes_are_deterministic_and_spread():
    order = Order(num_videos=50, batch_videos=10, seed=5)
    first = [order.substitute(p, 1) for p in range(200)]
    assert first == [order.substitute(p, 1) for p in range(200)]
    assert first != [order.substitute(p, 2) for p in range(200)]
    assert len(set(first)) > 40 and set(first) <= set(range(50))


def test_impossible_batches_are_refused_in_words():
    with pytest.raises(ValueError, match="3 videos do not fill one batch of 4"):
        Order(num_videos=3, batch_videos=4, seed=0)
    with pytest.raises(ValueError, match="does not divide among 3 processes"):
        Order(num_videos=8, batch_videos=4, seed=0).local_positions(0, 0, 3)
