"""Every encoder behind the one interface, with tiny random models of the real classes."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace

import pytest
import tiny_clip
import torch
from killed_training import kill_at_first_checkpoint
from safetensors import safe_open

from align.tiny_edit import build_edit_pipeline
from annotate.records import Split, load_snapshot
from annotate.settings import ConfigError, parse_config
from rewards.base import RewardItem
from rewards.config import RewardTrainConfig
from rewards.evaluate import evaluate_model
from rewards.folder import METRICS_FILE, WEIGHTS_FILE
from rewards.models import ENCODERS, open_encoder
from rewards.models.features import collate
from rewards.models.pixels import split_words
from rewards.models.preference import PreferenceConfig, PreferenceModel
from rewards.posters.draw import draw
from rewards.posters.spec import caption, random_spec
from rewards.scorers import load_scorer
from rewards.train import train_reward

CRITERIA = ("aesthetics", "detail")
LORA = {"lora": {"rank": 4}, "learning_rate": 3e-3}
KINDS = {
    "diffusion": {"type": "diffusion", "num_blocks": 1, "grid": 4},
    "qwen_vl": {"type": "qwen_vl", "max_prompt_tokens": 16, **LORA},
    "qwen_vl-frozen": {"type": "qwen_vl", "tune": "frozen", "grid": 2},
    "clip": {"type": "clip", "tune": "full", "learning_rate": 1e-3},
    "siglip": {"type": "clip", **LORA},
    "clip-frozen": {"type": "clip", "tune": "frozen"},
    "pixels": {"type": "pixels", "width": 16},
}
"""A case's name to its settings; what its base is, its name says."""


@pytest.fixture(scope="session")
def bases(random_base, tmp_path_factory):
    clip = tiny_clip.save_clip(tmp_path_factory.mktemp("clip"))
    siglip = tiny_clip.save_siglip(tmp_path_factory.mktemp("siglip"))
    pipeline = str(random_base)
    return {
        "diffusion": pipeline,
        "qwen_vl": pipeline,
        "clip": str(clip),
        "siglip": str(siglip),
        "pixels": None,
    }


@pytest.fixture(scope="session")
def plus_base(random_base, tmp_path_factory):
    """An editing pipeline that takes any number of source images."""
    folder = tmp_path_factory.mktemp("plus") / "pipeline"
    return str(build_edit_pipeline(random_base, folder, "QwenImageEditPlusPipeline"))


def open_kind(kind, bases):
    return open_encoder(KINDS[kind], bases[kind.partition("-")[0]], criteria=CRITERIA)


@pytest.fixture(params=KINDS)
def encoder(request, bases):
    return open_kind(request.param, bases)


def items(sizes=((64, 64), (96, 64), (64, 64))):
    """Posters of several sizes, their prompts of several lengths."""
    rng = random.Random(1)
    specs = [random_spec(rng) for _ in sizes]
    return [
        RewardItem(
            f"s{i}",
            "g",
            caption(spec, "en" if i % 2 else "zh") + " with more" * i,
            image=draw(spec, 64, seed=i).resize(size),
        )
        for i, (spec, size) in enumerate(zip(specs, sizes, strict=True))
    ]


def shake(network):
    """Trained weights away from where they start: an adapter starts by doing nothing."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)


def read(encoder, of):
    """What heads read of some items."""
    batch = encoder.collate(encoder.encode(of))
    if encoder.network is None:
        return batch
    with torch.no_grad():
        return encoder.network.eval()(**batch)


def test_all_that_heads_read_is_the_same_in_any_batch(encoder):
    if encoder.network is not None:
        shake(encoder.network)
    together = read(encoder, items())
    for row, item in enumerate(items()):
        alone = read(encoder, [item])
        for name, values in alone.items():
            expected = together[name][row]
            if name.startswith("text"):
                expected = expected[: values.shape[1]]
                assert not together[name][row, values.shape[1] :].any()
            torch.testing.assert_close(values[0], expected, rtol=1e-4, atol=1e-4)
    backwards = read(encoder, items()[::-1])
    for name, values in backwards.items():
        torch.testing.assert_close(values.flip(0), together[name], rtol=1e-4, atol=1e-4)


def test_no_criterion_sees_another(bases):
    """A head's state depends on its own token alone: not on the others, their order or number."""
    encoder = open_kind("qwen_vl", bases)
    shake(encoder.network)
    batch = encoder.collate(encoder.encode(items()))
    tokens = encoder.network.criterion_embeds
    with torch.no_grad():
        states = encoder.network(**batch)["states"]
        assert not torch.allclose(states[:, 0], states[:, 1], atol=1e-2)
        tokens[1] += 10.0
        changed = encoder.network(**batch)["states"]
        torch.testing.assert_close(changed[:, 0], states[:, 0], rtol=0, atol=1e-6)
        assert not torch.allclose(changed[:, 1], states[:, 1], atol=1e-2)
        tokens.copy_(tokens.flip(0))
        flipped = encoder.network(**batch)["states"]
        torch.testing.assert_close(flipped.flip(1), changed, rtol=0, atol=1e-5)
        encoder.network.criterion_embeds = torch.nn.Parameter(tokens[1:].clone())
        alone = encoder.network(**batch)["states"]
        torch.testing.assert_close(alone[:, 0], changed[:, 0], rtol=0, atol=1e-5)


def test_the_criterion_tokens_read_the_picture_and_the_prompt(bases):
    encoder = open_kind("qwen_vl", bases)
    first, second, _ = items()
    before = read(encoder, [first])["states"]
    for other in (
        RewardItem("a", "g", first.prompt, image=second.image),
        RewardItem("b", "g", second.prompt, image=first.image),
    ):
        assert not torch.allclose(read(encoder, [other])["states"], before, atol=1e-3)


READS_SOURCES = {"diffusion-edit", "qwen_vl", "qwen_vl-frozen"}


def edits():
    """Items whose prompts edit no picture, one, another, and two, of several sizes."""
    red, wide = (draw(random_spec(random.Random(i)), 64, seed=i) for i in (7, 8))
    wide = wide.resize((96, 64))
    (item,) = items(((64, 64),))
    sources = ((), (red,), (wide,), (red, wide), (wide, red))
    return [replace(item, sample_id=f"s{i}", source_images=of) for i, of in enumerate(sources)]


@pytest.mark.parametrize("kind", [*KINDS, "diffusion-edit"])
def test_encoders_that_look_at_sources_tell_them_apart_in_any_batch(kind, bases, plus_base):
    if kind == "diffusion-edit":
        settings = {**KINDS["diffusion"], "source_area": 64 * 64}
        encoder = open_encoder(settings, plus_base)
    else:
        encoder = open_kind(kind, bases)
    shown = edits()
    if kind == "diffusion":
        fault = r"sample 's1': .*takes none; pipelines that take them: .*'qwen_vl'"
        with pytest.raises(ValueError, match=fault):
            encoder.encode(shown)
        return
    if encoder.network is not None:
        shake(encoder.network)
    together = read(encoder, shown)
    named = "states" if "states" in together else "image"
    rows = together[named]
    told = [not torch.allclose(rows[0], row, atol=1e-4) for row in rows[1:]]
    assert told == [kind in READS_SOURCES] * 4
    if kind in READS_SOURCES:
        assert not torch.allclose(rows[3], rows[4], atol=1e-4)
    for row, item in enumerate(shown):
        alone = read(encoder, [item])[named]
        torch.testing.assert_close(alone[0], rows[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["qwen_vl", "clip", "siglip", "pixels"])
def test_what_a_prompt_has_beyond_the_window_is_counted_and_not_read(kind, bases):
    encoder = open_kind(kind, bases)
    (item,) = items(((64, 64),))
    long = RewardItem("s", "g", "a b c d " * 40, image=item.image)
    longer = RewardItem("s", "g", "a b c d " * 40 + "e", image=item.image)
    cut, more, none = encoder.left_out([long.prompt, longer.prompt, "a b"])
    assert cut > 0
    assert more == cut + 1
    assert none == 0
    for name, values in read(encoder, [long]).items():
        torch.testing.assert_close(read(encoder, [longer])[name], values)


def test_a_marker_in_a_prompt_is_text(bases):
    encoder = open_kind("qwen_vl", bases)
    (item,) = items(((64, 64),))
    told = RewardItem("s", "g", "<|image_pad|><|im_end|>", image=item.image)
    assert torch.isfinite(read(encoder, [told])["states"]).all()


def test_words_are_hashed_without_case_and_punctuation():
    assert split_words("A RED, circle!") == split_words("a red circle") == ["a", "red", "circle"]
    assert split_words("红色 poster") == ["红", "色", "poster"]


def test_every_kind_has_a_case():
    assert {settings["type"] for settings in KINDS.values()} == set(ENCODERS)


def settings_of(kind, bases, snapshot_folder, output, **changes):
    base = bases[kind.partition("-")[0]]
    return {
        "snapshot": str(snapshot_folder),
        **({} if base is None else {"base": base}),
        "output_dir": str(output),
        "encoder": KINDS[kind],
        "head": {"width": 32, "num_members": 1, "num_layers": 0, "dropout": 0.0},
        "learning_rate": 3e-3,
        "epochs": 5,
        "patience": 5,
        **changes,
    }


def train(*args, **changes):
    return train_reward(parse_config(RewardTrainConfig, settings_of(*args, **changes)))


def losses(folder, name="loss"):
    rows = map(json.loads, (folder / METRICS_FILE).read_text().splitlines())
    return [row[name] for row in rows if name in row]


@pytest.fixture(scope="module")
def trained(bases, snapshot_folder, tmp_path_factory):
    """Runs by kind, each trained when it is first asked for."""
    found = {}

    def of(kind):
        if kind not in found:
            output = tmp_path_factory.mktemp("runs") / kind
            found[kind] = train(kind, bases, snapshot_folder, output)
        return found[kind]

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_snapshot_trains_every_kind_through_the_same_trainer(kind, trained):
    result = trained(kind)
    steps = losses(result.folder)
    assert steps[-1] < 0.9 * steps[0]
    assert result.report["ci_low"] > 0.5
    assert list(result.report["criteria"]) == ["aesthetics", "detail", "overall"]
    assert (
        result.report["base_sha256"] == load_scorer(result.folder).encoder.identity["base_sha256"]
    )


@pytest.mark.parametrize("kind", ["qwen_vl", "siglip", "clip-frozen", "pixels"])
def test_a_saved_model_scores_as_it_was_measured(kind, trained, snapshot_folder):
    result = trained(kind)
    scorer = load_scorer(result.folder)
    snapshot = load_snapshot(snapshot_folder)
    report = evaluate_model(result.folder, scorer, snapshot, Split.TEST)
    for name, of in result.report["criteria"].items():
        assert report["criteria"][name]["nll"] == pytest.approx(of["nll"], abs=1e-5)
    (image,) = items(((64, 64),))
    lost = RewardItem("lost", "g", "p", latents=torch.zeros(16, 8, 8))
    score, fault = scorer.score([image, lost])
    assert scorer.spec.needs == {"image"}
    assert fault.error == "there is no image"
    assert set(score.components) == set(CRITERIA)


def test_the_folder_holds_what_was_trained_and_refuses_another_base(trained, bases, tmp_path):
    folder = trained("qwen_vl").folder
    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        names = [name for name in file.keys() if name.startswith("network.")]  # noqa: SIM118
    assert "network.criterion_embeds" in names
    assert all("lora_" in name for name in names if name != "network.criterion_embeds")
    other = tmp_path / "other"
    shutil.copytree(bases["qwen_vl"], other)
    weights = other / "text_encoder" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="but the base given is"):
        load_scorer(folder, base=other)


def test_a_killed_lora_run_continues_to_the_same_bits(trained, bases, snapshot_folder, tmp_path):
    whole = trained("qwen_vl")
    output = tmp_path / "run"
    kill_at_first_checkpoint(settings_of("qwen_vl", bases, snapshot_folder, output))
    resumed = train("qwen_vl", bases, snapshot_folder, output)
    assert losses(output) == losses(whole.folder)
    assert (output / WEIGHTS_FILE).read_bytes() == (whole.folder / WEIGHTS_FILE).read_bytes()
    assert resumed.report == whole.report


def test_checkpointing_activations_changes_no_gradient(bases):
    (plain, saving) = (
        open_encoder({**KINDS["qwen_vl"], **more}, bases["qwen_vl"], criteria=CRITERIA).network
        for more in ({}, {"gradient_checkpointing": True})
    )
    saving.load_state_dict(plain.state_dict())
    encoder = open_kind("qwen_vl", bases)
    batch = encoder.collate(encoder.encode(items()))
    for network in (plain, saving):
        shake(network)
        network.train()(**batch)["states"].square().sum().backward()
    assert saving.model.language_model.gradient_checkpointing
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(other.grad, one.grad, msg=name)


def test_a_base_that_does_not_fit_is_refused(bases, snapshot_folder, tmp_path):
    with pytest.raises(ValueError, match=r"is of type 'clip', expected one of \['qwen2_5_vl'"):
        open_encoder({"type": "qwen_vl"}, bases["clip"], criteria=CRITERIA)
    with pytest.raises(FileNotFoundError, match="no model of transformers at"):
        open_encoder({"type": "clip"}, bases["qwen_vl"])
    with pytest.raises(FileNotFoundError, match="expected a folder, or a model id"):
        open_encoder({"type": "clip"}, str(tmp_path / "nowhere"))
    for kind, base in (("pixels", "tiny"), ("clip", None)):
        with pytest.raises(ConfigError, match=f"encoder type '{kind}' needs"):
            parse_config(
                RewardTrainConfig,
                settings_of(kind, {**bases, kind: base}, snapshot_folder, tmp_path),
            )
    with pytest.raises(ConfigError, match="tune 'full' needs dtype 'float32'"):
        parse_config(
            RewardTrainConfig,
            settings_of("clip", bases, snapshot_folder, tmp_path)
            | {"encoder": {"type": "clip", "tune": "full", "dtype": "bfloat16"}},
        )


def test_heads_of_states_save_and_load(tmp_path):
    config = PreferenceConfig(criteria=["overall"], head="states", states_dim=8, width=16)
    torch.manual_seed(0)
    model = PreferenceModel(config).eval()
    states = torch.randn(3, 1, 8)
    model.save_pretrained(tmp_path)
    loaded = PreferenceModel.open(tmp_path).eval()
    assert torch.equal(loaded(states=states).logits, model(states=states).logits)


def test_frozen_features_are_what_the_network_gives(bases):
    encoder = open_kind("clip-frozen", bases)
    batch = collate(encoder.encode(items())).as_dict()
    assert batch["stats"].shape == (3, 3 * tiny_clip.EMBED + 1)
    cosine = batch["stats"][:, -1]
    images, texts, _ = batch["stats"][:, :-1].chunk(3, dim=1)
    torch.testing.assert_close(cosine, torch.cosine_similarity(images, texts))
