from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3v.data.balancing import BalancedSampler, balanced_order
from phi3v.data.packing import PackedDataset, Packs, plan_packs


@given(
    st.lists(st.integers(0, 300), min_size=4, max_size=200),
    st.integers(50, 200),
    st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_every_unit_stands_in_exactly_one_pack(lengths, pack_tokens, num_ranks):
    lengths = np.array(lengths)
    packs = plan_packs(lengths, pack_tokens, seed=1, num_ranks=num_ranks)
    assert sorted(packs.units.tolist()) == list(range(len(lengths)))
    assert len(packs) % num_ranks == 0
    for pack in range(len(packs)):
        assert len(packs[pack]) == 1 or lengths[packs[pack]].sum() <= pack_tokens


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(30, 120))
@settings(max_examples=60, deadline=None)
def test_nothing_fits_better_beside_the_longest_unit(lengths, pack_tokens):
    first = plan_packs(np.array(lengths), pack_tokens, seed=0)[0]
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    others = [length for unit, length in enumerate(lengths) if unit != longest]
    sums = [
        lengths[longest] + sum(some)
        for count in range(len(lengths))
        for some in combinations(others, count)
    ]
    fitting = [total for total in sums if total <= pack_tokens]
    assert sum(lengths[unit] for unit in first) == max(fitting, default=lengths[longest])


def mixed_lengths(count: int) -> np.ndarray:
    """Lengths like those of a mix of text, one-crop and many-crop samples."""
    random = np.random.default_rng(0)
    long = random.integers(700, 2700, count)
    return np.where(random.random(count) < 0.6, long, random.integers(30, 600, count))


def picture_lengths(count: int) -> np.ndarray:
    """Lengths of records with one picture in 16 crops, with few of text alone among them."""
    random = np.random.default_rng(0)
    text = random.lognormal(np.log(220), 0.6, count).astype(int).clip(24, 1500)
    pictures = random.choice([0, 1657, 1921, 1933, 2353, 2509], count, p=[0.06, *[0.188] * 5])
    return 1 + pictures + text


LENGTHS = {
    "mixed": mixed_lengths(20_000),
    "pictures": picture_lengths(20_000),
    "uniform": np.random.default_rng(0).integers(16, 3000, 20_000),
    "as long as packs": np.random.default_rng(0).integers(16, 16385, 20_000),
    "two lengths": np.tile([317, 2449], 10_000),
    "short": np.random.default_rng(0).integers(20, 400, 20_000),
}


@pytest.mark.parametrize("mix", LENGTHS)
def test_packs_are_nearly_full(mix):
    lengths = LENGTHS[mix]
    packs = plan_packs(lengths, 16384, seed=0, num_ranks=8)
    assert packs.sums(lengths).max() <= 16384
    assert lengths.sum() / (len(packs) * 16384) > 0.97


def test_packs_of_equal_lengths_hold_as_many_as_fit():
    packs = plan_packs(np.full(6000, 2500), 16384, seed=0)
    assert len(packs) == 1000


def test_the_same_seed_gives_the_same_packs():
    lengths = mixed_lengths(500)
    first, again, other = (plan_packs(lengths, 4096, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.units, again.units)
    assert np.array_equal(first.bounds, again.bounds)
    assert not np.array_equal(first.units, other.units)


def test_ranks_get_packs_of_equal_cost():
    lengths = mixed_lengths(20_000)
    packs = plan_packs(lengths, 8192, seed=0, num_ranks=8)
    costs = packs.sums(lengths + 1e-4 * lengths.astype(float) ** 2)
    by_step = costs[balanced_order(costs, 8, seed=0)].reshape(-1, 8)
    assert 1 - by_step.mean() / by_step.max(axis=1).mean() < 0.02


def test_batches_of_several_packs_cost_the_same_on_every_rank():
    costs = np.random.default_rng(0).permutation(np.repeat(np.arange(24.0), 4))
    order = balanced_order(costs, num_ranks=4, seed=0, batch_size=3)
    # The loader deals whole batches out, one to each rank in turn.
    batches = costs[order].reshape(-1, 4, 3).sum(axis=2)
    assert (batches == batches[:, :1]).all()
    uneven = balanced_order(costs[:20], num_ranks=4, seed=0, batch_size=3)
    assert sorted(uneven.tolist()) == list(range(20))


def test_the_order_of_steps_is_no_order_by_cost():
    costs = np.arange(1000.0)
    order = balanced_order(costs, 1, seed=0)
    assert sorted(order.tolist()) == list(range(1000))
    assert abs(np.corrcoef(costs, order)[0, 1]) < 0.2


def test_each_epoch_has_its_own_order():
    sampler = BalancedSampler(np.ones(50), num_ranks=2, seed=7)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert list(sampler) == first


def test_too_few_samples_for_the_processes_are_refused():
    with pytest.raises(ValueError, match="3 samples cannot be spread over 4 processes"):
        plan_packs(np.array([1, 2, 3]), 10, seed=0, num_ranks=4)


class Letters(list):
    """Examples that are letters; a dot stands for one that could not be read."""

    def __getitem__(self, position):
        letter = super().__getitem__(position)
        return {"input_ids": letter, "is_bad": True} if letter == "." else {"input_ids": letter}

    def stand_in(self):
        return {"input_ids": "nothing"}


def letters_of(dataset):
    return [
        [[one["input_ids"] for one in group] for group in dataset[index]]
        for index in range(len(dataset))
    ]


def test_samples_that_fill_a_pack_each_are_shared_out_over_more_processes():
    lengths = np.full(5, 100)
    packs = plan_packs(lengths, 50, seed=0, num_ranks=4)
    assert sorted(packs.sums(lengths).tolist()) == [0, 0, 0, 100, 100, 100, 100, 100]
    items = sum(letters_of(PackedDataset(Letters("abcde"), packs)), [])
    assert sorted(items) == [["a"], ["b"], ["c"], ["d"], ["e"], *[["nothing"]] * 3]


def test_an_item_holds_the_examples_of_its_groups():
    packs = Packs(np.array([1, 0]), np.array([0, 1, 2]))
    dataset = PackedDataset(Letters("abc"), packs, [[0, 2], [1]])
    assert letters_of(dataset) == [[["b"]], [["a", "c"]]]


def test_an_unreadable_example_leaves_the_others_of_its_group_together():
    packs = Packs(np.array([0, 1]), np.array([0, 1, 2]))
    dataset = PackedDataset(Letters("a.b.."), packs, [[0, 1, 2], [3, 4]])
    assert letters_of(dataset) == [[["a", "b"], ["."]], [["."], ["."]]]
