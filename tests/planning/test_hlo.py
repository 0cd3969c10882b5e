"""A program written by hand in the compiler's notation, with numbers that can be counted in it."""

import pathlib

import pytest

from vmae_jax.planning.hlo import Program

TEXT = (pathlib.Path(__file__).parent / "step.hlo").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def program():
    return Program(TEXT)


def test_loops_and_their_iterations(program):
    assert program.loops == {"body": 5}
    assert program.windowed_loops == []


def test_a_transfer_spread_over_fusions_counts_once_and_as_often_as_its_loop_runs(program):
    gathers = [c for c in program.collectives if c.kind == "all-gather"]
    assert len(gathers) == 1
    gather = gathers[0]
    assert (gather.bytes, gather.group, gather.times) == (8 * 6 * 2, 4, 5)
    assert gather.source.endswith("body/gather")
    assert gather.traffic == 96 * 3 / 4 * 5


def test_a_fusion_of_all_reduce_and_slice_is_a_reduce_scatter(program):
    scatter = next(c for c in program.collectives if c.kind == "reduce-scatter")
    assert (scatter.bytes, scatter.group, scatter.times) == (96, 4, 5)


def test_all_parts_of_an_all_reduce_count_twice_over_the_ring(program):
    reduce = next(c for c in program.collectives if c.kind == "all-reduce")
    assert (reduce.dtype, reduce.bytes, reduce.group) == ("f32", 9 * 4 + 4, 8)
    assert reduce.traffic == 40 * 2 * 7 / 8


def test_a_started_transfer_counts_what_it_moves_and_not_its_handles(program):
    moved = next(c for c in program.collectives if c.kind == "collective-permute")
    assert (moved.bytes, moved.traffic) == (7, 7.0)


def test_cycles_are_multiplied_by_the_loop(program):
    assert program.cycles == 5 * (100 + 20) + 7
    assert program.cycles_by_scope(("encoder", "decoder")) == {
        "encoder": 100,
        "decoder": 0,
        "other": 507,
    }


def test_the_costliest_instructions_come_first(program):
    assert [(i.name, cycles) for i, cycles in program.costliest(2)] == [
        ("fusion.1", 500),
        ("fusion.2", 100),
    ]


def test_dtypes_and_donation(program):
    assert program.dtypes == {"f32", "bf16", "s32", "u8", "u32", "pred"}
    assert program.donated == 2


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        Program("def step(): ...")
