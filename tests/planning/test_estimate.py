import pytest

from vmae_jax import chips
from vmae_jax.chips import Chip
from vmae_jax.planning import estimate
from vmae_jax.planning.hlo import Collective

CHIP = Chip("toy", "tpu", "toy", 100.0, 16.0, 1000.0, 50.0, 4)


def _time(**changes):
    arguments = {
        "flops": 10e12,
        "collectives": [],
        "state_bytes": 5 * 10**9,
        "grad_bytes": 2e9,
        "slices": 1,
        "chips_per_slice": 8,
        "efficiency": 0.5,
    }
    return estimate.step_time(CHIP, **arguments | changes)


def test_arithmetic_at_the_assumed_share_and_the_update_after_it():
    time = _time()
    assert time.compute == pytest.approx(10 / 50)
    assert time.optimizer == pytest.approx(2 * 5 / 1000)
    assert time.total == pytest.approx(0.21)


def test_transfers_hide_behind_arithmetic_until_they_are_longer():
    gather = Collective("all-gather", "bf16", 10**9, 5, 1, "")  # 0.8 GB at 50 GB/s
    assert _time(collectives=[gather]).total == pytest.approx(0.21)
    assert _time(collectives=[gather] * 20).total == pytest.approx(20 * 0.016 + 0.01)


def test_slices_exchange_the_gradient_over_the_slower_network():
    # Two ways, half of the ring, 8 chips a slice: 2 * 2e9 * 1/2 / 8 bytes a chip.
    assert _time(slices=2).slices == pytest.approx(0.25 / estimate.SLICE_GBPS)


def test_parts_are_grouped_as_in_the_papers():
    macs = {"patch_embed": 1, "encoder": 2, "encoder_to_decoder": 4, "decoder": 8, "head": 16}
    assert estimate.macs_by_group({**macs, "teacher": 32}) == {
        "encoder": 3,
        "decoder": 28,
        "teacher": 32,
    }
    assert estimate.recomputed_macs(macs, {"encoder": "full", "decoder": "named"}) == 2


def test_cores_follow_decoding_crops_and_augmentation():
    host = estimate.cores_to_feed(70.0, repeats=1, device_crop=False, randaugment=False)
    assert host["original mp4"] == pytest.approx(70 * (37 + 5.5) / 1000 / 0.7)
    shared = estimate.cores_to_feed(70.0, repeats=4, device_crop=True, randaugment=False)
    assert shared["original mp4"] == pytest.approx(70 * 37 / 4 / 1000 / 0.7)
    augmented = estimate.cores_to_feed(70.0, repeats=2, device_crop=False, randaugment=True)
    assert augmented["original mp4"] == pytest.approx(70 * (37 / 2 + 5.5 + 32) / 1000 / 0.7)


def test_advice_names_the_fields_in_the_order_of_their_cost():
    words = estimate.advice(
        remat={"encoder": "named", "decoder": "full"}, clips_per_chip=32, fsdp=8, chips_per_slice=64
    )
    assert "model.encoder.remat=full" in words[0] and "decoder" not in words[0]
    assert "--clips_per_chip=16" in words[1] and "mesh.fsdp=16" in words[2]
    last = estimate.advice(remat={"encoder": "full"}, clips_per_chip=1, fsdp=8, chips_per_slice=8)
    assert last == ["use more chips, or chips with more memory"]


def test_hosts_of_a_slice():
    v5e, v5p = chips.named("v5e"), chips.named("v5p")
    assert [v5e.hosts(n) for n in (1, 8, 16, 256)] == [1, 1, 4, 64]
    assert [v5p.hosts(n) for n in (4, 8, 64)] == [1, 2, 16]
