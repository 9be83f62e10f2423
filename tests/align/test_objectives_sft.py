import pytest
import torch
from peft import LoraConfig

from align.objectives.sft import SFT, SFTBatch
from align.policy import Policy


@pytest.fixture
def policy(adapter, transformer):
    return Policy(adapter, transformer, lora=LoraConfig(r=2))


@pytest.fixture
def batch(cond, noise):
    return SFTBatch(noise.roll(1, 0), cond, noise, torch.tensor([0.2, 0.5, 0.9]))


def test_the_loss_is_the_error_of_the_velocity(policy, batch):
    output = SFT().loss(policy, batch)
    sigma = batch.sigma.view(-1, 1, 1, 1)
    x_t = (1 - sigma) * batch.latents + sigma * batch.noise
    velocity = policy.velocity(x_t, batch.sigma, batch.cond)
    expected = torch.nn.functional.mse_loss(velocity, batch.noise - batch.latents)
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.metrics["error"], expected.detach())
    assert output.loss.requires_grad


def test_a_batch_is_the_mean_of_its_parts_also_when_weighted(policy, batch):
    weights = torch.tensor([1.0, 0.0, 3.0])

    def gradients(index):
        part = SFTBatch(
            batch.latents[index],
            batch.cond.select(index).trim(),
            batch.noise[index],
            batch.sigma[index],
            weights[index],
        )
        loss = SFT().loss(policy, part).loss
        return torch.autograd.grad(loss, policy.trainable_parameters())

    parts = [gradients([i]) for i in range(3)]
    for whole, *single in zip(gradients([0, 1, 2]), *parts, strict=True):
        torch.testing.assert_close(whole, sum(single) / 3, atol=1e-6, rtol=1e-4)
