import pytest
import torch

from align.advantage import decoupled_rewards, group_advantages


def test_advantages_are_standard_scores_within_each_group():
    result = group_advantages(torch.tensor([[1.0, 2.0, 3.0], [10.0, 10.0, 40.0]]))
    expected = torch.tensor([[-(1.5**0.5), 0, 1.5**0.5], [-(0.5**0.5), -(0.5**0.5), 2**0.5]])
    torch.testing.assert_close(result.values, expected)
    assert result.keep.tolist() == [True, True]
    assert result.reward == pytest.approx(11)
    assert result.reward_std == pytest.approx(((2 / 3) ** 0.5 + 200**0.5) / 2)
    assert result.frac_reward_zero_std == 0


def test_groups_without_a_difference_are_dropped_and_counted():
    rewards = torch.tensor([[0.7, 0.7], [0.7, 0.7 + 1e-6], [0.0, 1.0], [0.1 + 0.2, 0.3]])
    result = group_advantages(rewards, min_std=1e-4)
    assert result.keep.tolist() == [False, False, True, False]
    assert result.values.tolist() == [[0, 0], [0, 0], [-1, 1], [0, 0]]
    assert result.frac_reward_zero_std == 0.75


def test_outliers_are_clipped():
    rewards = torch.zeros(1, 50)
    rewards[0, 0] = 1
    assert group_advantages(rewards).values.max() == 5.0


def test_a_missing_reward_is_an_error_that_names_its_place():
    with pytest.raises(ValueError, match="sample 1 in group 0 is nan"):
        group_advantages(torch.tensor([[0.0, float("nan")], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        group_advantages(torch.zeros(4))
    with pytest.raises(ValueError, match="at least 2 in a group"):
        group_advantages(torch.zeros(4, 1))


def test_a_sample_without_a_reward_is_left_out_of_its_groups_mean_and_deviation():
    rewards = torch.tensor([[1.0, 3.0, float("nan")], [2.0, float("nan"), float("nan")]])
    known = rewards.isfinite()
    result = group_advantages(rewards, known=known)
    assert result.values.tolist() == [[-1, 1, 0], [0, 0, 0]]
    assert result.keep.tolist() == [True, False]
    assert result.reward == 2.0
    with pytest.raises(ValueError, match=r"0 true values; expected .* at least one"):
        group_advantages(rewards, known=torch.zeros_like(known))


def test_a_groups_small_range_drops_it_and_a_scale_replaces_its_deviation():
    rewards = torch.tensor([[0.0, 0.1, 0.2], [0.0, 1.0, 2.0]])
    result = group_advantages(rewards, min_range=0.5)
    assert result.keep.tolist() == [False, True]
    assert result.frac_reward_zero_std == 0.5
    scaled = group_advantages(rewards, scale=2.0)
    torch.testing.assert_close(scaled.values, torch.tensor([[-0.05, 0, 0.05], [-0.5, 0, 0.5]]))


def test_decoupled_rewards_are_standard_scores_before_they_are_summed():
    """GDPO: two rewards of very different scales, whose sum would be the larger one's alone."""
    small, large = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[2000.0, 1000.0, 0.0]])
    found = decoupled_rewards({"a": small, "b": large}, {"a": 3.0, "b": 1.0})
    expected = (3 - 1) / 4 * torch.tensor([[-(1.5**0.5), 0, 1.5**0.5]])
    torch.testing.assert_close(found, expected)
    equal = decoupled_rewards({"a": small, "b": torch.ones(1, 3)}, {})
    torch.testing.assert_close(equal, torch.tensor([[-(1.5**0.5), 0, 1.5**0.5]]) / 2)
