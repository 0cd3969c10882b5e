"""Several processes as several hosts: one run, one result, one end."""

import signal

import jax
import numpy as np
import pytest
from processes import ended, log, params, rows, run, saved_steps, started, wait_until

from vmae_jax.data.synthetic import generate

STEPS = 12
ALL = f"--config.train.steps={STEPS}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Videos and compiled programs that the runs of this module share."""
    folder = tmp_path_factory.mktemp("place")
    generate(folder / "videos", num_videos=30)
    return folder


@pytest.fixture(scope="module")
def one(place):
    """The run of one process on two devices, whole."""
    workdir = place / "one"
    assert run(place / "videos", workdir, ALL, **of(place, 1, 2)) == [0]
    return workdir


def of(place, count, devices):
    return {"count": count, "devices": devices, "cache": place / "cache"}


def assert_same_steps(workdir, reference, steps):
    """The same clips in the same order; losses equal up to the order of sums."""
    a, b = rows(reference)[:steps], rows(workdir)
    assert [row["step"] for row in b] == list(range(1, steps + 1))
    assert [row["clips_crc32"] for row in a] == [row["clips_crc32"] for row in b]
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([r[name] for r in a], [r[name] for r in b], rtol=2e-5)


def assert_same_run(workdir, reference):
    assert_same_steps(workdir, reference, STEPS)
    # Adam divides by the root of a running square: where that is near 0, a sum in another order
    # moves a weight by a part of the learning rate, which is 4e-3 at its peak.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0.0, atol=1e-4),
        params(reference, STEPS),
        params(workdir, STEPS),
    )


def test_two_processes_see_and_compute_what_one_does_and_stop_together(place, one):
    workdir = place / "two"
    with started(place / "videos", workdir, ALL, **of(place, 2, 1)) as processes:
        wait_until(lambda: len(rows(workdir)) >= 3, processes)
        processes[1].send_signal(signal.SIGTERM)
        codes = ended(processes, within_s=120)
    assert codes == [143, 143], log(workdir, 0) + log(workdir, 1)
    reached = rows(workdir)[-1]["step"]
    assert 3 <= reached < STEPS and saved_steps(workdir)[-1] == reached
    assert f"a signal to another process received: step {reached} is saved" in log(workdir, 0)
    assert f"SIGTERM received: step {reached} is saved" in log(workdir, 1)
    assert_same_steps(workdir, one, reached)


@pytest.mark.slow
def test_stopped_run_of_two_processes_goes_on_to_the_same_end(place, one):
    workdir = place / "stopped"
    for last in (5, STEPS):
        stop = f"--config.train.stop_after={last}"
        assert run(place / "videos", workdir, ALL, stop, **of(place, 2, 1)) == [0, 0]
    assert "Resumed from the checkpoint of step 5" in log(workdir, 1)
    assert_same_run(workdir, one)


@pytest.mark.slow
def test_killed_process_ends_the_others_and_the_job_goes_on_from_the_last_checkpoint(place, one):
    workdir = place / "killed"
    # A broken connection shows at once; where one waits for the other to save, after this time.
    options = of(place, 2, 1)
    with started(place / "videos", workdir, ALL, "--heartbeat_s=10", **options) as processes:
        wait_until(lambda: len(rows(workdir)) >= 5, processes)
        processes[1].kill()
        codes = ended(processes, within_s=90)
    assert codes[0] not in (0, 143) and codes[1] == -signal.SIGKILL
    last = saved_steps(workdir)[-1]
    assert run(place / "videos", workdir, ALL, **of(place, 2, 1)) == [0, 0]
    assert f"Resumed from the checkpoint of step {last}" in log(workdir, 0)
    assert_same_run(workdir, one)


@pytest.mark.slow
def test_frozen_process_is_taken_for_dead_after_the_heartbeats_time(place):
    workdir = place / "frozen"
    options = of(place, 2, 1)
    with started(place / "videos", workdir, ALL, "--heartbeat_s=10", **options) as processes:
        wait_until(lambda: len(rows(workdir)) >= 2, processes)
        processes[1].send_signal(signal.SIGSTOP)
        (code,) = ended(processes[:1], within_s=90)
    assert code not in (0, 143)


@pytest.mark.slow
def test_checkpoint_of_four_processes_resumes_on_two_and_on_one(place, one):
    workdir = place / "fewer"
    flags = (ALL, "--config.mesh.fsdp=2")
    for count, last in ((4, 4), (2, 8), (1, STEPS)):
        stop = f"--config.train.stop_after={last}"
        devices = {4: 2, 2: 1, 1: 2}[count]
        codes = run(place / "videos", workdir, *flags, stop, **of(place, count, devices))
        assert codes == [0] * count, log(workdir, 0)
    assert_same_run(workdir, one)


@pytest.mark.slow
def test_bad_video_on_one_process_stops_all_at_the_same_step_and_can_be_put_right(place, one):
    generate(place / "bad", num_videos=30)
    workdir = place / "refused"
    bad = sorted((place / "bad" / "videos").rglob("*.mp4"))[7]
    whole = bad.read_bytes()
    bad.write_bytes(b"not a video")
    strict = "--config.data.on_error=raise"
    codes = run(place / "bad", workdir, ALL, strict, **of(place, 2, 1))
    assert codes == [1, 1]
    logs = [log(workdir, 0), log(workdir, 1)]
    guilty = int(bad.name in logs[1])
    assert bad.name in logs[guilty] and "another process of this run" in logs[1 - guilty]
    done = len(rows(workdir))
    assert (saved_steps(workdir) or [0])[-1] == done < 6  # within the first epoch
    bad.write_bytes(whole)
    assert run(place / "bad", workdir, ALL, strict, **of(place, 2, 1)) == [0, 0]
    assert_same_run(workdir, one)


@pytest.mark.slow
def test_replaced_videos_are_counted_over_all_processes_and_restarts(place):
    generate(place / "holes", num_videos=30)
    for path in sorted((place / "holes" / "videos").rglob("*.mp4"))[::3]:
        path.write_bytes(b"not a video")
    counts = {}
    for count, devices in ((1, 2), (2, 1)):
        workdir = place / f"holes_{count}"
        limit = "--config.data.max_error_rate=0.9"
        for last in (5, STEPS):
            stop = f"--config.train.stop_after={last}"
            codes = run(place / "holes", workdir, ALL, limit, stop, **of(place, count, devices))
            assert codes == [0] * count, log(workdir, 0)
        counts[count] = [row["decode_failures"] for row in rows(workdir)]
    assert counts[1] == counts[2] and counts[2] == sorted(counts[2]) and counts[2][-1] >= 8
