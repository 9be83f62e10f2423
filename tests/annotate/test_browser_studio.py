"""What a designer does beyond best and worst, in a real browser, and whom the page shuts out."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from browser_tools import (
    DESKTOP,
    marks,
    open_page,
    press,
    save_picture,
    serious,
    served,
    submit,
    wait_for_images,
)
from playwright.sync_api import expect
from web_studio import make_studio

from annotate.records import Mark, Reason
from annotate.store import PreferenceStore
from annotate.web.app import create_app
from annotate.web.i18n import catalogue


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreferenceStore]:
    folder = tmp_path_factory.mktemp("browser") / "studio"
    with make_studio(folder, counts=(6, 5, 4, 4, 2, 5, 4), size=384, annotators=7) as store:
        yield store


@pytest.fixture(scope="module")
def url(store: PreferenceStore) -> Iterator[str]:
    with served(create_app(store)) as url:
        yield url


def picks_of(store: PreferenceStore, name: str) -> list:
    annotator = store.pseudonym(name)
    order = {own.prompt: -own.number for own in store.history(store.user(name).id)}
    prompts, _, tasks, picks = store.labelled()
    text_of = {p.id: p.text for p in prompts}
    prompt_of = {task.id: text_of[task.prompt_id] for task in tasks}
    mine = [pick for pick in picks if pick.annotator == annotator]
    return sorted(mine, key=lambda pick: -order[prompt_of[pick.task_id]])


def test_every_outcome_by_the_keyboard_in_both_languages(browser, url, store, tmp_path):
    page, watch = open_page(browser, url, "mei")
    status = page.locator(".ws-status")
    order = store.claim(store.user("mei").id).display_order

    press(page, "1", "5", "q", "e", "d")  # reasons: two for the best, one for the worst
    press(page, "ArrowRight", "ArrowRight", "]", "]", ".")  # B: 4 stars, thumb up
    press(page, "m", "ArrowRight", "Shift+ArrowRight", "Enter", "d", "Escape")  # a fault in B
    assert page.locator(".ws-region").inner_text().startswith("Detail")
    save_picture(page, "labelling-details", tmp_path)
    for width, height in ((1920, 1080), (768, 1024)):
        page.set_viewport_size({"width": width, "height": height})
        save_picture(page, f"labelling-{width}", tmp_path)
    page.set_viewport_size(DESKTOP)
    submit(page, "1 of 7")
    wait_for_images(page)
    press(page, "0")
    submit(page, "2 of 7")

    page.locator("[data-lang=zh]").focus()
    press(page, "Enter")
    words = catalogue("zh")
    expect(status).to_have_text(words["status.start"])
    press(page, "=")
    expect(status).to_have_text(words["status.all_equal"])
    page.evaluate("document.activeElement.blur()")
    submit(page, "已完成 3 / 7")
    wait_for_images(page)
    press(page, "c")
    expect(page.locator(".ws-count")).to_have_text("已完成 4 / 7")
    wait_for_images(page)
    press(page, "f", "ArrowDown", "Enter")
    expect(page.locator(".ws-count")).to_have_text("已完成 5 / 7")
    wait_for_images(page)
    with page.expect_response("**/api/submit"):
        press(page, "n")
    wait_for_images(page)

    first, *others = picks_of(store, "mei")
    assert [pick.outcome.value for pick in (first, *others)] == [
        "picked", "all_bad", "all_equal", "cannot_judge", "flag", "skip",
    ]  # fmt: skip
    assert (first.win, first.lose) == (order[0], order[4])
    assert set(first.reasons) == {
        Reason(target="win", criterion="aesthetics"),
        Reason(target="win", criterion="detail"),
        Reason(target="lose", criterion="detail"),
    }
    assert first.marks == (Mark(ordinal=order[1], rating=4, thumb="up"),)
    (region,) = first.regions
    assert (region.ordinal, region.criterion) == (order[1], "detail")
    assert (region.x + region.width, region.y + region.height) < (384, 384)

    press(page, "h")
    expect(page.locator(".ws-history-list li")).to_have_count(6)
    expect(page.locator(".ws-history-facts").first).to_contain_text(words["outcome.skip"])
    watch.assert_quiet(url)
    page.context.close()


def test_in_reference_mode_one_key_is_an_answer(browser, url, store):
    prompt = store.prompts()[0]
    ids = [candidate.id for candidate in store.candidates(prompt.id)]
    store.add_tasks({prompt.id: ids}, references=[ids[0]], priority=900)
    store.add_user("reference reader", "a long enough password")
    page, watch = open_page(browser, url, "reference reader")
    expect(page.locator(".ws-question")).to_contain_text("The reference is best")
    reference = page.locator(".ws-card[data-reference]")
    left, right = (
        page.locator(".ws-card").evaluate_all(f"all => Math.{which}(...all.map(c => c.offsetLeft))")
        for which in ("min", "max")
    )
    assert reference.evaluate("card => card.offsetLeft") == left < right
    reference.locator(".ws-frame").click()
    expect(page.locator(".ws-submit")).to_be_disabled()  # the gold image is never the worst
    press(page, "9", "2", "a")
    assert marks(page)["B"] == "worst"
    page.keyboard.press("Enter")
    expect(page.locator(".ws-card[data-reference]")).to_have_count(0)
    (pick,) = picks_of(store, "reference reader")
    task = store.task(pick.task_id)
    assert task.candidate_ids[pick.win] == ids[0]
    assert pick.reasons == (Reason(target="lose", criterion="aesthetics"),)
    watch.assert_quiet(url)
    page.context.close()


def test_looking_closely_and_keys_of_ones_own(browser, url, store):
    page, watch = open_page(browser, url, "jonas")
    picture = page.locator(".ws-picture").first

    def transforms() -> set[str]:
        return set(
            page.locator(".ws-picture").evaluate_all("all => all.map(p => p.style.transform)")
        )

    box = page.locator(".ws-frame").nth(1).bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(middle[0] + 50, middle[1] + 40)
    page.mouse.wheel(0, -600)
    expect(picture).to_have_attribute("style", re.compile("scale"))
    before = transforms()
    assert len(before) == 1  # the same place in every candidate
    page.mouse.down()
    page.mouse.move(*middle, steps=3)
    page.mouse.up()
    assert len(transforms()) == 1
    assert transforms() != before
    assert marks(page) == {}  # a drag chooses nothing
    press(page, "Escape")
    assert transforms() == {""}

    press(page, "1", "4", "x")  # flip: the two marked ones, in one place
    visible = page.locator(".ws-card:visible")
    expect(visible).to_have_count(1)
    place = visible.bounding_box()
    expect(visible.locator(".ws-letter")).to_have_text("A")
    press(page, "x")
    expect(visible.locator(".ws-letter")).to_have_text("D")
    assert visible.bounding_box() == place
    press(page, "Escape")
    expect(visible).to_have_count(6)

    press(page, "k")
    page.locator("[data-remap=submit]").click()
    press(page, "1")
    expect(page.locator(".ws-keys-status")).to_have_text(catalogue("en")["keys.fixed"])
    press(page, "z")
    expect(page.locator(".ws-keys-status")).to_contain_text("Z is taken by")
    press(page, "y", "Escape")
    page.clock.install()
    page.reload()
    wait_for_images(page)
    for _ in range(10):  # 47 minutes without a break of five
        page.clock.fast_forward(282_000)
        press(page, "Shift")
    expect(page.locator(".ws-pause")).to_be_hidden()  # nobody is disturbed while judging
    press(page, "1", "2")
    expect(page.locator(".ws-submit")).to_contain_text("Y")
    expect(page.locator(".ws-submit")).to_be_enabled()
    press(page, "Enter", "y")
    expect(page.locator(".ws-count")).to_have_text("1 of 7")
    wait_for_images(page)
    expect(page.locator(".ws-pause")).to_contain_text("47 minutes at a stretch")
    page.locator(".ws-pause button").click()
    expect(page.locator(".ws-pause")).to_be_hidden()
    press(page, "k")
    page.locator("[name=shortcuts]").uncheck()
    press(page, "Escape", "1", "0", "n")
    assert marks(page) == {}
    expect(page.locator(".ws-count")).to_have_text("1 of 7")
    expect(page.locator(".ws kbd:visible")).to_have_count(0)
    watch.assert_quiet(url)
    page.context.close()


def test_two_tabs_a_double_click_and_the_way_back_give_one_pick_each(browser, url, store):
    page, _ = open_page(browser, url, "rita")
    other = page.context.new_page()
    other.goto(f"{url}/annotate")
    wait_for_images(other)
    prompt = page.locator(".ws-prompt-text").inner_text()
    assert other.locator(".ws-prompt-text").inner_text() == prompt  # the same task in hand
    press(page, "1", "2")
    page.locator(".ws-submit").dblclick()
    expect(page.locator(".ws-count")).to_have_text("1 of 7")
    wait_for_images(page)
    assert marks(page) == {}

    press(other, "3", "4")
    expect(other.locator(".ws-submit")).to_be_enabled()
    press(other, "Enter")
    expect(other.locator(".ws-banner")).to_contain_text(catalogue("en")["error.answered"])
    other.locator(".ws-banner-action").click()
    expect(other.locator(".ws-count")).to_have_text("1 of 7")
    wait_for_images(other)
    page.goto(f"{url}/healthz")
    page.go_back()
    wait_for_images(page)
    assert page.locator(".ws-prompt-text").inner_text() != prompt
    held = []
    page.route("**/media/*", lambda route: held.append(route), times=1)  # one picture is slow
    page.reload()
    expect(page.locator(".ws-card:not([data-loaded])")).to_have_count(1)
    press(page, "1", "2", "Enter")
    expect(page.locator(".ws-submit")).to_be_disabled()
    held[0].continue_()
    expect(page.locator(".ws-submit")).to_be_enabled()
    (pick,) = picks_of(store, "rita")
    assert len(store.history(store.user("rita").id)) == 1
    assert pick.outcome == "picked"
    page.context.close()


def test_the_guideline_opens_at_the_question_in_hand_however_late_its_pictures_come(
    browser, url, store
):
    prompt = store.prompts()[0]
    ids = [candidate.id for candidate in store.candidates(prompt.id)]
    store.add_tasks({prompt.id: ids}, "detail", priority=950)
    store.add_user("careful reader", "a long enough password")
    page, watch = open_page(browser, url, "careful reader")
    held = []
    page.route("**/static/examples/*", lambda route: held.append(route))
    press(page, "?")
    heading = page.locator(".ws-guide [data-section=detail] h3")
    expect(heading).to_be_in_viewport()
    place = heading.bounding_box()
    expect(page.locator(".ws-guide [data-section=general]")).not_to_be_in_viewport()
    for route in held:
        route.continue_()
    loaded = "all => all.length && all.every(image => image.naturalWidth)"
    page.wait_for_function(f"({loaded})([...document.querySelectorAll('.ws-example img')])")
    assert heading.bounding_box() == place
    watch.assert_quiet(url)
    page.context.close()


def test_a_lead_writes_the_guideline_and_every_view_is_accessible(browser, url, store, tmp_path):
    login = browser.new_page()
    login.goto(f"{url}/login?lang=zh")
    assert serious(login) == []
    login.close()
    page, watch = open_page(browser, url, "lea")
    assert serious(page) == []
    press(page, "1", "2", "q", "t", "?")
    expect(page.locator(".ws-example")).to_have_count(3)
    assert serious(page) == []
    save_picture(page, "guideline", tmp_path)
    press(page, "Escape", "f")
    expect(page.locator(".ws-flag")).to_be_visible()
    assert serious(page) == []
    press(page, "Escape", "k")
    assert serious(page) == []
    press(page, "Escape", "t")
    submit(page, "1 of 7")
    wait_for_images(page)
    press(page, "h")
    expect(page.locator(".ws-history-list img")).to_have_count(2)
    assert serious(page) == []
    page.get_by_role("button", name="Use as an example").click()
    page.locator(".ws-example textarea[lang=en]").fill("${document.title='owned'} <b>calm</b>")
    page.locator("fieldset textarea[lang=en]").first.fill("Look first.")
    assert serious(page) == []
    page.get_by_role("button", name="Publish").click()
    expect(page.locator(".ws-guide-version")).to_contain_text("version 1, by lea")
    expect(page.locator(".ws-example figcaption")).to_have_text(
        "${document.title='owned'} <b>calm</b>"
    )
    assert "owned" not in page.title()
    press(page, "Escape", "1", "2")
    submit(page, "2 of 7")
    assert store.guideline_version() == 1

    page.get_by_role("button", name="Light or dark").click()
    wait_for_images(page)
    press(page, "1", "2", "q", "s")
    assert serious(page) == []
    page.set_viewport_size({"width": 640, "height": 400})  # 1280 x 800 at 200 %
    assert page.evaluate("document.querySelector('.ws').scrollWidth") <= 640
    page.locator(".ws-submit").scroll_into_view_if_needed()
    expect(page.locator(".ws-submit")).to_be_in_viewport()
    assert serious(page) == []
    watch.assert_quiet(url)
    page.context.close()
