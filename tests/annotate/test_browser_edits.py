"""A designer judges edits in a real browser: the source beside the candidates, or over them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser_tools import open_page, press, save_picture, serious, served, submit
from playwright.sync_api import expect
from web_studio import PASSWORD, png

from annotate.records import Candidate, Prompt
from annotate.store import PreferenceStore
from annotate.web.app import create_app
from rewards.posters.draw import draw
from rewards.posters.edits import PosterEdit, draw_edit, instruction
from rewards.posters.spec import PosterSpec

SPEC = PosterSpec("cream", "star", "red", "left", "TEA", "yellow", "frame")
EDIT = PosterEdit("recolour", "color", SPEC, replace(SPEC, color="blue"))
SIZE = 384


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreferenceStore]:
    with PreferenceStore.open(tmp_path_factory.mktemp("edits") / "studio") as store:
        store.add_user("mei", PASSWORD, "annotator")
        fill(store)
        yield store


def fill(store: PreferenceStore) -> None:
    drawn = draw_edit(EDIT, SIZE)
    shown = [
        drawn.target,
        drawn.source,
        draw(replace(SPEC, color="green"), SIZE),
        draw(replace(EDIT.target, background="mint"), SIZE),
        draw(EDIT.target, SIZE, {"blur": 0.7}),
    ]
    files = {hashlib.sha256(data).hexdigest(): data for data in map(png, shown)}
    source = png(drawn.source)
    files[hashlib.sha256(source).hexdigest()] = source
    edit = Prompt(
        id="edit",
        text=instruction(EDIT, "en"),
        source_image=hashlib.sha256(source).hexdigest(),
    )
    plain = Prompt(id="plain", text="a cream framed poster")
    store.add_prompts([edit, plain], files)
    hashes = [hashlib.sha256(png(image)).hexdigest() for image in shown]
    for number, (prompt, used) in enumerate(((edit, hashes), (plain, hashes[:2]))):
        candidates = [
            Candidate(
                id=f"{prompt.id}-{i}",
                prompt_id=prompt.id,
                image_sha256=sha256,
                width=SIZE,
                height=SIZE,
            )
            for i, sha256 in enumerate(used)
        ]
        store.add_candidates(candidates, files)
        store.add_tasks({prompt.id: [c.id for c in candidates]}, "instruction", priority=-number)


@pytest.fixture(scope="module")
def url(store: PreferenceStore) -> Iterator[str]:
    with served(create_app(store)) as url:
        yield url


def test_the_source_stands_beside_the_candidates_and_takes_their_place(
    browser, url, tmp_path: Path
):
    page, watch = open_page(browser, url, "mei")
    source = page.locator(".ws-card[data-source]")
    layers = page.locator(".ws-source-layer")
    expect(page.locator(".ws-card")).to_have_count(6)
    expect(source.locator(".ws-letter")).to_have_text("Source")
    expect(page.locator(".ws-prompt .ws-label")).to_have_text("Instruction")
    expect(page.locator(".ws-ask .ws-hint")).to_contain_text("Press O to compare")
    expect(layers).to_have_count(5)
    boxes = [page.locator(".ws-card").nth(i).bounding_box() for i in range(6)]
    assert boxes[0] == min(boxes, key=lambda box: (box["y"], box["x"]))
    assert len({(round(box["width"]), round(box["height"])) for box in boxes}) == 1
    assert serious(page) == []

    source.locator(".ws-frame").click()  # it cannot be chosen
    expect(page.locator(".ws-card[data-mark]")).to_have_count(0)
    press(page, "1", "2")
    save_picture(page, "labelling-edit", tmp_path)
    expect(layers.first).to_be_hidden()
    press(page, "o")
    expect(layers.first).to_be_visible()
    picture = page.locator(".ws-card:not([data-source]) .ws-picture").first.bounding_box()
    assert layers.first.bounding_box() == picture
    press(page, "o")
    expect(layers.first).to_be_hidden()
    press(page, "o", "Escape")
    expect(layers.first).to_be_hidden()
    page.locator(".ws-look [data-action=source]").click()
    expect(layers.first).to_be_visible()
    press(page, "g")  # one alone, and the source in its place
    expect(source).to_be_hidden()
    expect(page.locator(".ws-source-layer:visible")).to_have_count(1)
    press(page, "Escape", "Escape")
    press(page, "+")
    assert "scale" in source.locator(".ws-picture").get_attribute("style")
    press(page, "Escape", "k")
    expect(page.locator(".ws-keylist")).to_contain_text("The source in every candidate’s place")
    press(page, "Escape")

    submit(page, "1 of 2")
    expect(page.locator(".ws-card")).to_have_count(2)
    expect(page.locator(".ws-look [data-action=source]")).to_be_hidden()
    expect(page.locator(".ws-prompt .ws-label")).to_have_text("Prompt")
    press(page, "o")
    expect(page.locator(".ws-status")).to_have_text("This task has no source picture")
    watch.assert_quiet(url)
    page.context.close()
