"""Stages add up, whichever begins inside which."""

import numpy as np

from vmae_jax.data import stages


def test_an_inner_stage_stops_the_clock_of_the_outer_one(monkeypatch):
    times = iter([1.0, 3.0, 7.0, 15.0, 20.0, 21.0])
    monkeypatch.setattr(stages.time, "thread_time", lambda: next(times))
    with stages.recorded() as seconds:
        with stages.stage("decode"), stages.stage("convert"):  # from 1.0; from 3.0
            pass  # until 7.0; until 15.0
        with stages.stage("crop"):
            pass  # from 20.0 until 21.0
    assert {k: v for k, v in seconds.items() if v} == {"decode": 10.0, "convert": 4.0, "crop": 1.0}


def test_without_a_recording_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(stages.time, "thread_time", lambda: 1 / 0)
    with stages.stage("decode"):
        pass


def test_a_stage_that_fails_ends_too():
    with stages.recorded() as seconds:
        try:
            with stages.stage("read"):
                raise OSError
        except OSError:
            pass
        ended = dict(seconds)
        sum(np.arange(100_000).tolist())
    assert seconds == ended
