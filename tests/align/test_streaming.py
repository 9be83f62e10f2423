"""A reference whose blocks pass over the device: the numbers of one that stays there."""

from __future__ import annotations

import copy

import pytest
import torch
from run_data import dpo_config, losses, write_data

from align.mmdit.blocks import BlockSettings
from align.mmdit.streaming import BlockStream, host_copy
from align.offline import train_dpo
from align.policy import Policy
from annotate.settings import ConfigError

SIGMA = torch.tensor([0.9, 0.5, 0.1])


@pytest.mark.parametrize("layers", [3, 4])
@pytest.mark.parametrize("blocks", ["stock", "joint"])
@torch.no_grad()
def test_a_streamed_pass_gives_the_same_bits_again_and_again(adapter, cond, noise, blocks, layers):
    model = copy.deepcopy(adapter.transformer)
    model.transformer_blocks = model.transformer_blocks[:layers]
    adapter.install_blocks(model, BlockSettings(blocks))
    streamed = host_copy(model)
    kept = [[p.data_ptr() for p in block.parameters()] for block in streamed.transformer_blocks]
    stream = BlockStream(streamed, "cpu")
    expected = adapter.velocity(model, noise, SIGMA, cond)
    for _ in range(2):
        assert torch.equal(adapter.velocity(streamed, noise, SIGMA, cond), expected)
    # A pass that ends early, and one after it.
    broken = streamed.transformer_blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        adapter.velocity(streamed, noise, SIGMA, cond)
    broken.remove()
    assert torch.equal(adapter.velocity(streamed, noise, SIGMA, cond), expected)
    # Outside of a pass the blocks' weights are those in host memory; two blocks lie beside them.
    found = [[p.data_ptr() for p in block.parameters()] for block in streamed.transformer_blocks]
    assert found == kept
    block = sum(p.numel() for p in model.transformer_blocks[0].parameters())
    assert sum(x.numel() for slot in stream._slots for x in slot) == 2 * block


def test_a_streamed_transformer_has_no_gradient(adapter, cond, noise):
    streamed = host_copy(adapter.transformer)
    BlockStream(streamed, "cpu")
    with pytest.raises(ValueError, match="a streamed transformer has no gradient"):
        adapter.velocity(streamed, noise, SIGMA, cond)
    policy = Policy(adapter, copy.deepcopy(adapter.transformer), reference="streamed")
    policy.move_reference("cpu")
    with policy.reference():
        assert not policy.velocity(noise, SIGMA, cond).requires_grad


def test_a_run_with_a_streamed_reference_is_that_with_a_live_one(untrained_folder, tmp_path):
    data = write_data(tmp_path / "data")
    settings = {"max_steps": 3, "blocks": "joint", "batch_size": 2, "save_every": 0}
    for mode in ("live", "streamed"):
        reference = {"reference": {"mode": mode}}
        train_dpo(dpo_config(data, untrained_folder, tmp_path / mode, **settings, **reference))
    assert losses(tmp_path / "streamed") == losses(tmp_path / "live")
    with pytest.raises(ConfigError, match="a LoRA's reference is its own base"):
        dpo_config(data, untrained_folder, tmp_path, reference={"mode": "streamed"}, lora={})
