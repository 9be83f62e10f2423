import random

import pytest
import torch
from PIL import Image

from align.mmdit.adapters import load_adapter
from rewards.base import RewardItem
from rewards.config import DiffusionEncoderConfig
from rewards.models import open_encoder
from rewards.models.diffusion import DiffusionEncoder
from rewards.models.features import FeatureCache, Features, collate
from rewards.models.preference import PreferenceConfig, PreferenceModel
from rewards.posters.draw import draw
from rewards.posters.spec import random_spec


@pytest.fixture(scope="module")
def adapter(random_base):
    return load_adapter(random_base)


@pytest.fixture(scope="module")
def encoder(adapter):
    return DiffusionEncoder(adapter, DiffusionEncoderConfig(sigmas=(0.1, 0.5), grid=4))


def items(count, size=64, **fields):
    rng = random.Random(0)
    return [
        RewardItem(f"s{i}", "g", f"a poster {'x' * i}", image=draw(random_spec(rng), size, seed=i))
        for i in range(count)
    ]


def same(one, other):
    for name in ("image", "text", "stats"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-4)


def test_features_have_a_fixed_grid_whatever_the_size(encoder):
    small, large, wide = encoder.encode(
        [
            RewardItem("a", "g", "a", image=Image.new("RGB", size))
            for size in ((64, 64), (128, 128), (128, 64))
        ]
    )
    # 2 sigmas x 192 channels beside 4 x 16 of the latents
    assert small.image.shape == large.image.shape == wide.image.shape == (16, 2 * 192 + 64)
    assert small.stats.shape == (64,)


def test_prompts_encoded_beforehand_give_the_same_features(random_base, encoder):
    """Then the text encoder is asked no more, and lies in host memory."""
    config = DiffusionEncoderConfig(sigmas=(0.1, 0.5), grid=4)
    one = DiffusionEncoder.open(config, str(random_base), "cpu")
    batch = items(3)
    one.prepare([(item.prompt, ()) for item in batch])
    one._adapter.encode_prompts = None
    for found, expected in zip(one.encode(batch), encoder.encode(batch), strict=True):
        same(found, expected)
    assert len(one._transformer.transformer_blocks) == DiffusionEncoderConfig().num_blocks
    assert one._adapter.transformer is None


def test_prompts_beyond_the_memory_are_forgotten_but_for_those_encoded_beforehand(
    adapter, monkeypatch
):
    monkeypatch.setattr("rewards.models.diffusion._MEMORY_BYTES", 0)
    encoder = DiffusionEncoder(adapter, DiffusionEncoderConfig(grid=4))
    batch = items(4)
    encoder._remember({(batch[0].prompt,): ()})
    encoder._prepared.add((batch[0].prompt,))
    first = encoder.encode(batch[:3])
    encoder.encode(batch[3:])
    assert set(encoder._conditionings) == {(batch[0].prompt,), (batch[3].prompt,)}
    for again, found in zip(encoder.encode(batch[:3]), first, strict=True):
        same(again, found)


def test_features_are_the_same_in_any_batch_and_order(encoder):
    batch = items(5)
    together = encoder.encode(batch)
    for item, features in zip(batch[::-1], encoder.encode(batch[::-1]), strict=True):
        same(features, together[batch.index(item)])
    for item, features in zip(batch, together, strict=True):
        same(encoder.encode([item])[0], features)


def test_an_image_and_its_latents_are_one_item(adapter, encoder):
    (item,) = items(1)
    pixels = torch.tensor(list(item.image.tobytes()), dtype=torch.float32).view(64, 64, 3)
    latents = adapter.encode_images(pixels.permute(2, 0, 1)[None] / 127.5 - 1)[0]
    as_latents = RewardItem("s", "g", item.prompt, latents=latents)
    same(encoder.encode([as_latents])[0], encoder.encode([item])[0])


def test_an_item_without_a_picture_is_named(encoder):
    with pytest.raises(ValueError, match="'lost' has neither an image nor latents"):
        encoder.encode([RewardItem("lost", "g", "a poster")])


def test_training_the_base_afterwards_changes_no_features(random_base):
    adapter = load_adapter(random_base)
    encoder = open_encoder({"type": "diffusion"}, adapter=adapter)
    before = encoder.encode(items(1))[0]
    fingerprint = encoder.fingerprint()
    with torch.no_grad():
        for parameter in adapter.transformer.parameters():
            parameter += 0.1
    same(encoder.encode(items(1))[0], before)
    with pytest.raises(ValueError, match="the base model was changed after loading"):
        open_encoder({"type": "diffusion"}, adapter=adapter).check_fingerprint(fingerprint)


def test_another_base_is_refused(adapter):
    with pytest.raises(ValueError, match=f"base model 0123, but .* {adapter.model_sha256()}"):
        open_encoder({"type": "diffusion", "base_sha256": "0123"}, adapter=adapter)
    with pytest.raises(ValueError, match=r"'blip', expected one of \['diffusion', 'qwen_vl'"):
        open_encoder({"type": "blip"}, adapter=adapter)
    with pytest.raises(ValueError, match="num_blocks is 9, but the base has 4"):
        open_encoder({"type": "diffusion", "num_blocks": 9}, adapter=adapter)


def test_the_cache_gives_back_what_it_was_given(tmp_path, encoder):
    cache = FeatureCache(tmp_path, encoder.identity)
    (features,) = encoder.encode(items(1))
    assert cache.load("image", "prompt") is None
    cache.store("image", "prompt", features)
    found = cache.load("image", "prompt")
    assert torch.equal(found.image, features.image)
    assert torch.equal(found.text, features.text)
    assert cache.load("image", "another prompt") is None
    assert cache.load("image", "prompt", "source") is None
    assert cache.path("image", "prompt", "source") != cache.path("image", "prompt", "another")
    assert FeatureCache(tmp_path, {"type": "other"}).load("image", "prompt") is None
    # A damaged file is as good as none.
    path = cache.path("image", "prompt")
    path.write_bytes(path.read_bytes()[:100])
    assert cache.load("image", "prompt") is None


def model(**sizes):
    torch.manual_seed(0)
    config = PreferenceConfig(
        num_image_tokens=4, image_dim=8, text_dim=6, stats_dim=5, width=16, **sizes
    )
    return PreferenceModel(config).eval()


def features(length):
    return Features(torch.randn(4, 8), torch.randn(length, 6), torch.randn(5))


def test_padding_of_the_text_changes_no_score():
    short, long = features(3), features(9)
    net = model()
    alone = net(**collate([short]).as_dict()).logits
    together = net(**collate([short, long]).as_dict()).logits
    torch.testing.assert_close(together[:1], alone)


def test_scores_depend_on_text_and_on_where_things_are():
    net, one = model(), features(3)
    moved = Features(one.image.flip(0), one.text, one.stats)
    told = Features(one.image, one.text + 1, one.stats)
    a, b, c = net(**collate([one, moved, told]).as_dict()).logits
    assert not torch.allclose(a, b)
    assert not torch.allclose(a, c)


def test_overall_is_a_combination_that_no_criterion_can_lower():
    net = model(num_members=3)
    with torch.no_grad():
        for member in net.members:
            member.combination.copy_(torch.tensor([-5.0, 0.0, 3.0]))
    weights = net.overall_weights()
    assert list(weights) == ["aesthetics", "instruction", "detail"]
    assert all(weight > 0 for weight in weights.values())
    logits = net(**collate([features(3) for _ in range(4)]).as_dict()).logits
    combined = logits[..., :3] @ torch.tensor(list(weights.values()))
    torch.testing.assert_close(logits[..., 3], combined)


def test_overall_picks_train_the_combination_and_no_head():
    net = model()
    net(**collate([features(3)]).as_dict()).logits[..., 3].sum().backward()
    trained = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"members.0.combination", "members.1.combination"}


def test_overall_alone_is_a_head_of_its_own():
    net = model(criteria=["overall"])
    assert net.config.outputs == ("overall",)
    assert net(**collate([features(3)]).as_dict()).logits.shape == (1, 2, 1)
    assert net.overall_weights() == {}


def test_a_saved_model_scores_the_same(tmp_path):
    net = model()
    batch = collate([features(3), features(5)])
    net.standardise_by(batch.as_dict())
    net.save_pretrained(tmp_path)
    loaded = PreferenceModel.open(tmp_path).eval()
    torch.testing.assert_close(loaded(**batch.as_dict()).logits, net(**batch.as_dict()).logits)
