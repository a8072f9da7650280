"""Every image has one place, whatever the batch, the shards and the number of processes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prologue.bulk.plan import Plan

SMALL = st.integers(1, 40)


@given(SMALL, SMALL, SMALL, st.integers(1, 5))
def test_everything_is_covered_once(count: int, batch: int, shard_size: int, world: int) -> None:
    plan = Plan(count, batch, shard_size)
    assert [image for chunk in range(plan.chunks) for image in plan.images(chunk)] == list(range(count))
    assert sorted(chunk for rank in range(world) for chunk in plan.share(rank, world)) == list(range(plan.chunks))
    assert [chunk for shard in range(plan.shards) for chunk in plan.shard_chunks(shard)] == list(range(plan.chunks))
    assert [image for shard in range(plan.shards) for image in plan.shard_images(shard)] == list(range(count))
    for shard in range(plan.shards):
        images = plan.shard_images(shard)
        assert all(plan.shard_of(chunk) == shard for chunk in plan.shard_chunks(shard))
        assert [plan.place(image) for image in images] == [(plan.shard_name(shard), i) for i in range(len(images))]
        assert len(images) < shard_size + batch
        if shard < plan.shards - 1:
            assert len(images) >= shard_size


def test_names_of_archives() -> None:
    assert Plan(100, 10, 100).shard_name(0) == "samples.npz"
    several = Plan(101, 10, 25)
    assert [several.shard_name(shard) for shard in range(several.shards)] == [f"samples-0000{i}.npz" for i in range(4)]
    assert [len(several.shard_images(shard)) for shard in range(several.shards)] == [30, 30, 30, 11]
