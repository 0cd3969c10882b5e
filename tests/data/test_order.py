"""The order of a run is a function of the seed alone."""

import numpy as np
import pytest

from vmae_jax.data.order import Order, Pass, Share


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


def test_shares_are_exact_in_each_epoch_and_even_over_epochs():
    # Of 6 videos 3 an epoch, of 4 all, of 5 seven (each once, two of them again).
    shares = (Share(6, 3), Share(4, 4), Share(5, 7))
    order = Order(15, 7, seed=3, shares=shares)
    assert order.num_draws == 14 and order.steps_per_epoch == 2
    epochs = [records(order, e) for e in range(10)]
    for epoch in epochs:
        assert [sum(a <= r < b for r in epoch) for a, b in ((0, 6), (6, 10), (10, 15))] == [3, 4, 7]
        assert sorted(r for r in epoch if 6 <= r < 10) == [6, 7, 8, 9]
        assert {r for r in epoch if r >= 10} == {10, 11, 12, 13, 14}
    assert sorted(r for e in epochs[:2] for r in e if r < 6) == [0, 1, 2, 3, 4, 5]
    counts = np.bincount(np.concatenate(epochs))
    assert set(counts[:6]) == {5} and set(counts[6:10]) == {10} and set(counts[10:]) == {14}
    assert len({tuple(e) for e in epochs}) == 10
    assert records(Order(15, 7, seed=3, shares=shares), 6) == epochs[6]


def test_shares_without_shuffle_come_part_after_part():
    order = Order(5, 4, seed=0, shuffle=False, shares=(Share(2, 1), Share(3, 3)))
    assert [records(order, e) for e in range(3)] == [[0, 2, 3, 4], [1, 2, 3, 4], [0, 2, 3, 4]]


def test_one_whole_share_is_the_order_of_a_plain_list():
    plain, share = Order(9, 4, seed=5), Order(9, 4, seed=5, shares=(Share(9, 9),))
    for position in range(20):
        assert plain.locate(position) == share.locate(position)
        assert plain.substitute(position, 1) == share.substitute(position, 1)


def test_the_order_of_runs_that_began_with_earlier_versions_stays():
    order = Order(num_videos=10, batch_videos=4, seed=3)
    assert records(order, 0) == [2, 3, 6, 1, 7, 4, 8, 0]
    assert order.substitute(5, 2) == 9


def test_a_substitute_is_of_the_same_part():
    order = Order(102, 51, seed=0, shares=(Share(2, 2), Share(100, 100)))
    small = [p for p in range(102) if order.locate(p)[2] < 2]
    assert len(small) == 2
    assert all(order.substitute(p, a) < 2 for p in small for a in range(1, 8))


def test_shares_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="do not add up to 3"):
        Order(3, 1, seed=0, shares=(Share(2, 2),))


def test_a_pass_goes_through_the_source_once_and_fills_up_the_last_batch():
    once = Pass(num_videos=5, batch_videos=3, seed=0)
    assert once.steps_per_epoch == 2
    assert [once.locate(p)[2] for p in range(6)] == [0, 1, 2, 3, 4, -1]
    assert once.substitute(2, 1) == -1
    assert Pass(num_videos=2, batch_videos=8, seed=0).steps_per_epoch == 1
