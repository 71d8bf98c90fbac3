import pytest
import torch

from phi3v.inference.sampling import RowSampler, RowSampling

IDS = torch.tensor([[0, 0, 1, 2], [3, 4, 5, 6]])
SCORES = torch.tensor([[0.0, 1.0, 2.0, 3.0, 3.5, 0.0, 0.0]] * 2)


def test_greedy_rows_keep_their_scores() -> None:
    sampler = RowSampler([RowSampling(), RowSampling()], [2, 4], "cpu")
    assert sampler(IDS, SCORES) is SCORES


def test_a_penalty_counts_the_row_without_its_padding() -> None:
    rows = [RowSampling(repetition_penalty=2.0), RowSampling()]
    scores = RowSampler(rows, [2, 4], "cpu")(IDS, SCORES)
    assert scores[0].tolist() == [0.0, 0.5, 1.0, 3.0, 3.5, 0.0, 0.0]
    assert scores[1].tolist() == SCORES[1].tolist()


def test_a_row_that_draws_has_one_token_left() -> None:
    scores = RowSampler([RowSampling(temperature=1.0), RowSampling()], [2, 4], "cpu")(IDS, SCORES)
    assert torch.isfinite(scores).sum(dim=1).tolist() == [1, 7]


@pytest.mark.parametrize(("top_p", "expected"), [(1.0, {0, 1, 2, 3, 4, 5, 6}), (0.6, {3, 4})])
def test_tokens_are_drawn_by_their_share(top_p: float, expected: set[int]) -> None:
    sampler = RowSampler([RowSampling(1.0, top_p, seed=0)], [4], "cpu")
    drawn = [int(sampler(IDS[1:], SCORES[1:]).argmax()) for _ in range(2000)]
    assert set(drawn) == expected
    kept = SCORES[0].softmax(0)
    share = kept[4] / sum(float(kept[one]) for one in expected)
    # 2000 draws: three standard deviations are below 0.034.
    assert abs(drawn.count(4) / 2000 - float(share)) < 0.034


def test_a_seed_repeats_whoever_else_is_in_the_batch() -> None:
    row = RowSampling(temperature=1.5, seed=7)
    alone = RowSampler([row], [4], "cpu")
    together = RowSampler([RowSampling(temperature=1.0), row], [2, 4], "cpu")
    for _ in range(20):
        assert int(alone(IDS[1:], SCORES[1:]).argmax()) == int(together(IDS, SCORES)[1].argmax())
