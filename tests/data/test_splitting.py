"""Splits hold the classes in proportion, never overlap, and follow from their seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchscale.data.folders import divide
from patchscale.data.splitting import class_counts, fingerprint, hold_out, limit, stratified_order
from patchscale.errors import UserError

LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=120).map(np.array)


@given(LABELS, st.integers(0, 5))
def test_every_leading_part_is_in_proportion(labels: np.ndarray, seed: int) -> None:
    order = stratified_order(labels, seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    for length in (1, len(labels) // 3, len(labels) // 2, len(labels)):
        for label in range(5):
            expected = length * (labels == label).mean()
            assert abs((labels[order[:length]] == label).sum() - expected) < 2.5


@given(LABELS, st.floats(0.01, 0.9), st.integers(0, 5))
def test_holding_out_divides(labels: np.ndarray, fraction: float, seed: int) -> None:
    kept, held = hold_out(labels, fraction, seed)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert len(held) == max(1, round(fraction * len(labels)))
    assert kept.tolist() == sorted(kept.tolist())


def test_a_tenth_is_exact_where_it_can_be() -> None:
    labels = np.repeat(np.arange(10), 600)
    kept, held = hold_out(labels, 0.1, 0, "val")
    assert np.bincount(labels[held]).tolist() == [60] * 10
    assert np.bincount(labels[kept]).tolist() == [540] * 10
    assert not np.array_equal(held, hold_out(labels, 0.1, 1, "val")[1])


def test_smaller_limits_are_nested_in_larger_ones() -> None:
    labels = np.random.default_rng(0).integers(0, 3, 100)
    indices = np.arange(20, 100)
    small, large = (limit(indices, labels, count, 7, what="x") for count in (10, 30))
    assert set(small) < set(large) < set(indices)
    assert limit(indices, labels, None, 7, what="x") is indices


def test_too_many_images_wanted() -> None:
    with pytest.raises(UserError, match=r"data.val_images=11, but the split has 10 images; lower it or leave it out"):
        limit(np.arange(10), np.zeros(10), 11, 0, what="data.val_images")


@given(LABELS, st.sampled_from([(), ("val",), ("test",), ("val", "test")]), st.floats(0.05, 0.45))
def test_splits_never_overlap(labels: np.ndarray, others: tuple[str, ...], fraction: float) -> None:
    published = {"train": labels, **dict.fromkeys(others, labels[: len(labels) // 2 + 1])}
    splits = divide(published, fraction, 0).splits
    assert list(splits) == ["train", "val", "test"]
    items = [(part, index) for part, indices in splits.values() for index in indices.tolist()]
    assert len(items) == len(set(items))
    assert len(items) == sum(map(len, published.values()))
    assert splits["test"][0] == ("test" if "test" in others else "val" if "val" in others else "train")


def test_half_cannot_be_held_out_twice() -> None:
    with pytest.raises(UserError, match=r"data.val_fraction=0.5 is held out twice.*less than 0.5"):
        divide({"train": np.zeros(10, np.int64)}, 0.5, 0)


def test_counts_and_fingerprints() -> None:
    assert class_counts([0, 2, 2], ["a", "b", "c"]) == {"a": 1, "b": 0, "c": 2}
    prints = {
        fingerprint(lists)
        for lists in ({"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}, {"train": ["a", "b"]})
    }
    assert len(prints) == 3
