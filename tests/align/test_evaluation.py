"""The final evaluation: closed forms of the gain and its interval."""

import numpy as np
import pytest
from PIL import Image

from align.evaluation import Readings, compare, interval, measure
from annotate.records import Candidate, Prompt
from rewards.posters.draw import draw
from rewards.posters.spec import PosterSpec

SPEC = PosterSpec("cream", "star", "red", "left", "TEA", "yellow", "plain")


def readings(value: float, prompts: int = 20, images: int = 3) -> Readings:
    return Readings(np.full((prompts, images, 3), value))


def test_the_gain_is_over_the_better_baseline_and_headroom_is_what_it_lacks():
    result = compare(readings(0.9), {"sft": readings(0.5), "control": readings(0.6)}, seed=0)
    assert result["gain"].value == pytest.approx(0.5)
    assert (result["gain"].ci_low, result["gain"].ci_high) == pytest.approx((0.5, 0.5))
    assert result["headroom_closed"] == pytest.approx(0.75)
    assert result["criteria"]["detail"].value == pytest.approx(0.3)


def test_the_bootstrap_interval_has_the_width_of_the_standard_error():
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    found = interval(lambda rows: float(values[rows].mean()), 400, seed=1)
    assert found.value == pytest.approx(values.mean())
    assert found.ci_high - found.ci_low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.1)


def test_images_are_read_against_their_own_prompt(tmp_path):
    prompt = Prompt(id="p", text="t", metadata={"spec": SPEC.to_dict()})
    image: Image.Image = draw(SPEC)
    image.save(tmp_path / "a.png")
    one = Candidate(id="1", prompt_id="p", image_sha256="a", width=128, height=128)
    assert measure([prompt], [one, one], tmp_path).means()["mean"] == 1.0
    other = prompt.model_copy(update={"id": "q"})
    with pytest.raises(ValueError, match=r"images per prompt: got \[0, 1\]"):
        measure([prompt, other], [one], tmp_path)
