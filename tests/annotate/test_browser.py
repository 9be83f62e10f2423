"""The labelling page in a real browser: Chromium drives it as a designer does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser_tools import (
    DESKTOP,
    Recorder,
    marks,
    open_page,
    press,
    save_picture,
    served,
    submit,
    wait_for_images,
)
from playwright.sync_api import expect
from web_studio import PASSWORD, make_studio, secrets_of

from annotate.records import Prompt
from annotate.store import PreferenceStore, Submission
from annotate.web.app import create_app

TABLET = {"width": 820, "height": 1180}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreferenceStore]:
    folder = tmp_path_factory.mktemp("browser") / "studio"
    with make_studio(folder, counts=(6, 5, 4, 4, 2, 5, 4), size=256, annotators=7) as store:
        yield store


@pytest.fixture(scope="module")
def recorder(store: PreferenceStore) -> Recorder:
    return Recorder(create_app(store))


@pytest.fixture(scope="module")
def url(recorder: Recorder) -> Iterator[str]:
    with served(recorder) as url:
        yield url


def position_of(store: PreferenceStore, name: str, drawing: int) -> int:
    """Where the task in hand shows the candidate that was drawn with these faults."""
    claim = store.claim(store.user(name).id)
    (task,) = (task for task in store.tasks() if task.id == claim.task_id)
    shown = [task.candidate_ids[ordinal] for ordinal in claim.display_order]
    return next(i for i, candidate in enumerate(shown) if candidate.endswith(f"-{drawing}"))


def current_picks(store: PreferenceStore, name: str) -> dict[str, tuple]:
    """Task -> (outcome, win, lose) of this annotator's current picks."""
    annotator = store.pseudonym(name)
    return {
        pick.task_id: (pick.outcome.value, pick.win, pick.lose)
        for pick in store.labelled()[3]
        if pick.annotator == annotator
    }


def test_a_designer_labels_five_tasks_with_the_keyboard_alone(
    browser, url, store, recorder, tmp_path
):
    recorder.sent.clear()
    page, watch = open_page(browser, url, "mei")
    user = store.user("mei")
    expected: dict[str, tuple] = {}

    def expect_pick(win: int, lose: int) -> None:
        claim = store.claim(user.id)  # the task in hand, as it is on the screen
        order = claim.display_order
        expected[claim.task_id] = ("picked", order[win], order[lose])

    expect(page.locator(".ws-count")).to_have_text("0 of 7")
    expect(page.locator(".ws-card")).to_have_count(6)
    expect(page.locator(".ws-submit")).to_be_disabled()
    best, worst = position_of(store, "mei", drawing=0), position_of(store, "mei", drawing=4)
    press(page, str(best + 1), str(worst + 1))  # the second number is the worst
    assert marks(page) == {"ABCDEF"[best]: "best", "ABCDEF"[worst]: "worst"}
    save_picture(page, "labelling", tmp_path)
    expect_pick(win=best, lose=worst)
    submit(page, "1 of 7")

    wait_for_images(page)
    press(page, "Shift+1", "3")  # the worst first
    assert marks(page) == {"C": "best", "A": "worst"}
    expect_pick(win=2, lose=0)
    submit(page, "2 of 7")

    wait_for_images(page)
    press(page, "ArrowRight", "ArrowRight", "b", "ArrowLeft", "v")  # with the focus
    assert marks(page) == {"B": "best", "A": "worst"}
    press(page, "z", "z")
    assert marks(page) == {}
    press(page, "4", "1")
    expect_pick(win=3, lose=0)
    submit(page, "3 of 7")

    wait_for_images(page)
    press(page, "1", "0")  # all bad, instead of a mark
    assert marks(page) == {}
    expected[store.claim(user.id).task_id] = ("all_bad", None, None)
    submit(page, "4 of 7")

    wait_for_images(page)
    press(page, "1")  # of two, the other is the worst
    assert marks(page) == {"A": "best", "B": "worst"}
    press(page, "2")  # as among more: the second number is the worst
    assert marks(page) == {"A": "best", "B": "worst"}
    press(page, "2")  # and once more changes the answer
    assert marks(page) == {"A": "worst", "B": "best"}
    press(page, "1")
    assert marks(page) == {"A": "best", "B": "worst"}
    submit(page, "5 of 7")

    wait_for_images(page)
    press(page, "z")  # back into the task before, with its marks
    expect(page.locator(".ws-count")).to_have_text("4 of 7")
    wait_for_images(page)
    assert marks(page) == {"A": "best", "B": "worst"}
    press(page, "2")
    expect_pick(win=1, lose=0)
    submit(page, "5 of 7")

    assert current_picks(store, "mei") == expected
    assert len(expected) == 5
    watch.assert_quiet(url)
    text = b"\n".join(recorder.sent)
    # Each picture comes once: loaded ahead, it is not asked for again. The last task's four may
    # still be on their way.
    assert 6 + 5 + 4 + 4 + 2 + 5 <= text.count(b"content-type: image/png") <= 30
    assert [secret for secret in secrets_of(store) if secret.encode() in text] == []
    page.context.close()


def test_language_theme_and_dialogs(browser, url, store, tmp_path):
    page, watch = open_page(browser, url, "jonas", locale="zh-CN", color_scheme="dark")
    expect(page.locator(".ws-submit")).to_contain_text("提交")
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    best, worst = position_of(store, "jonas", drawing=0), position_of(store, "jonas", drawing=4)
    press(page, str(best + 1), str(worst + 1))
    save_picture(page, "labelling-zh-dark", tmp_path)

    page.get_by_role("button", name="EN", exact=True).click()
    expect(page.locator(".ws-submit")).to_contain_text("Submit")
    page.get_by_role("button", name="Light or dark").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    assert sorted(marks(page).values()) == ["best", "worst"]  # nothing was lost
    page.reload()
    wait_for_images(page)
    expect(page.locator(".ws-submit")).to_contain_text("Submit")
    expect(page.locator("html")).to_have_attribute("data-theme", "light")

    press(page, "?")
    expect(page.locator(".ws-guide")).to_be_visible()
    press(page, "n", "Escape")  # keys mean nothing behind a dialog
    expect(page.locator(".ws-guide")).to_be_hidden()
    expect(page.locator(".ws-count")).to_have_text("0 of 7")
    watch.assert_quiet(url)
    page.context.close()


def test_keys_that_are_not_meant_do_nothing(browser, url, store):
    page, watch = open_page(browser, url, "rita")
    for options in ("isComposing: true", "keyCode: 229", "ctrlKey: true", "metaKey: true"):
        page.evaluate(
            "(e) => document.dispatchEvent(e)",
            page.evaluate_handle(
                f"new KeyboardEvent('keydown', {{code: 'Digit1', key: '1', {options}}})"
            ),
        )
    page.keyboard.down("1")
    page.keyboard.down("1")  # held down: a repeat
    page.keyboard.up("1")
    assert marks(page) == {"A": "best"}
    press(page, "9")  # there is no ninth
    assert marks(page) == {"A": "best"}

    page.keyboard.down("Space")
    zoomed = page.locator('.ws-picture[style*="scale"]')
    expect(zoomed).to_have_count(6)
    page.keyboard.up("Space")
    expect(zoomed).to_have_count(0)

    press(page, "f")
    page.locator(".ws-flag textarea").fill("")
    page.keyboard.type("s0=z the logo is a real brand")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".ws-count")).to_have_text("1 of 7")
    assert [pick[0] for pick in current_picks(store, "rita").values()] == ["flag"]
    wait_for_images(page)
    with page.expect_response("**/api/submit"):
        press(page, "n")
    assert store.progress(store.user("rita").id).skipped == 1
    watch.assert_quiet(url)
    page.context.close()


def test_a_pick_survives_a_lost_connection_and_a_reload(browser, url, store):
    page, _ = open_page(browser, url, "lea")
    network = {"lost": True}
    # Installed before the keys: interception that starts between two of them may come too late.
    page.route(
        "**/api/submit", lambda route: route.abort() if network["lost"] else route.fallback()
    )
    press(page, "1", "2")
    expect(page.locator(".ws-submit")).to_be_enabled()
    before = page.locator(".ws-card").first.bounding_box()
    page.keyboard.press("Enter")
    expect(page.locator(".ws-banner")).to_contain_text("not saved yet")
    assert page.locator(".ws-card").first.bounding_box() == before
    assert current_picks(store, "lea") == {}
    network["lost"] = False
    page.reload()
    expect(page.locator(".ws-count")).to_have_text("1 of 7")
    assert len(current_picks(store, "lea")) == 1

    # The answer is lost on the way back: the second sending is the same pick.
    wait_for_images(page)
    press(page, "1", "2")
    expect(page.locator(".ws-submit")).to_be_enabled()

    def lose_answer(route):
        route.fetch()
        route.abort()

    page.route("**/api/submit", lose_answer, times=1)
    page.keyboard.press("Enter")
    expect(page.locator(".ws-count")).to_have_text("2 of 7", timeout=30_000)  # by itself
    assert len(current_picks(store, "lea")) == 2
    page.context.close()


def test_an_image_that_fails_holds_the_submit_until_it_loads(browser, url):
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    page.route("**/media/*", lambda route: route.abort(), times=1)
    page.goto(f"{url}/login?next=/annotate")
    page.fill("input[name=name]", "eva")
    page.fill("input[name=password]", PASSWORD)
    page.keyboard.press("Enter")
    broken = page.locator(".ws-broken:visible")
    expect(broken).to_have_count(1, timeout=60_000)
    press(page, "1", "2")
    expect(page.locator(".ws-submit")).to_be_disabled()
    broken.click()
    wait_for_images(page)
    expect(page.locator(".ws-submit")).to_be_enabled()
    context.close()


def pinch(page, frame, apart):
    """Two fingers in the middle of ``frame`` go from one distance to the other, in pixels."""
    box = frame.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    client = page.context.new_cdp_session(page)

    def touch(kind, distance=None):
        places = [] if distance is None else [x - distance / 2, x + distance / 2]
        points = [{"x": place, "y": y, "id": n} for n, place in enumerate(places)]
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", apart[0])
    for part in (0.5, 1.0):
        touch("touchMove", apart[0] + part * (apart[1] - apart[0]))
    touch("touchEnd")


def test_a_tablet_labels_with_the_finger(browser, url, store, tmp_path):
    options = {"viewport": TABLET, "has_touch": True, "is_mobile": True}
    page, watch = open_page(browser, url, "ada", **options)
    best, worst = position_of(store, "ada", drawing=0), position_of(store, "ada", drawing=4)
    page.locator(".ws-frame").nth(best).tap()
    page.locator(".ws-frame").nth(worst).tap()
    assert marks(page) == {"ABCDEF"[best]: "best", "ABCDEF"[worst]: "worst"}
    sizes = page.locator(".ws-frame").evaluate_all("all => all.map(f => f.clientWidth)")
    assert len(set(sizes)) == 1
    save_picture(page, "labelling-tablet", tmp_path)
    page.locator(".ws-submit").tap()
    expect(page.locator(".ws-count")).to_have_text("1 of 7")
    wait_for_images(page)
    pinch(page, page.locator(".ws-frame").first, apart=(40, 120))
    scales = page.locator(".ws-picture").evaluate_all(
        "all => all.map(p => new DOMMatrix(getComputedStyle(p).transform).a)"
    )
    assert scales == pytest.approx([3] * page.locator(".ws-frame").count(), rel=1e-3)
    assert page.evaluate("visualViewport.scale") == 1
    assert marks(page) == {}
    watch.assert_quiet(url)
    page.context.close()


def test_the_end_of_the_work_is_told_and_can_be_taken_back(browser, url, store):
    user = store.add_user("nearly done", PASSWORD)
    while (claim := store.claim(user.id)).progress.remaining > 1:
        store.submit(
            user.id,
            Submission(
                idempotency_key=f"end-{claim.assignment_id:06}",
                assignment_id=claim.assignment_id,
                lease_token=claim.lease_token,
                outcome="all_equal",
            ),
        )
    page, watch = open_page(browser, url, "nearly done")
    press(page, "0")
    expect(page.locator(".ws-submit")).to_be_enabled()
    press(page, "Enter")
    expect(page.get_by_role("heading", name="Nothing left to label")).to_be_in_viewport()
    expect(page.locator(".ws-submit")).to_be_disabled()
    expect(page.locator("[aria-pressed=true][data-action]")).to_have_count(0)
    press(page, "z")
    wait_for_images(page)
    expect(page.locator("[data-action=all_bad]")).to_have_attribute("aria-pressed", "true")
    watch.assert_quiet(url)
    page.context.close()


HOSTILE = "${document.title='owned'} {{value}} <img src=x onerror=\"document.title='owned'\"> `"


def test_a_prompt_is_shown_as_it_was_written(browser, url, store):
    candidates = [c.id for c in store.candidates()]
    images = {c.image_sha256: store.image_path(c.image_sha256) for c in store.candidates()}
    store.add_prompts([Prompt(id="hostile", text=HOSTILE)])
    copies = [
        store.candidates()[i].model_copy(update={"id": f"hostile-{i}", "prompt_id": "hostile"})
        for i in range(min(3, len(candidates)))
    ]
    store.add_candidates(copies, images)
    store.add_tasks({"hostile": [c.id for c in copies]}, priority=1000)
    store.add_user("new designer", PASSWORD)
    page, watch = open_page(browser, url, "new designer")
    expect(page.locator(".ws-prompt-text")).to_have_text(HOSTILE)
    assert "owned" not in page.title()
    watch.assert_quiet(url)
    page.context.close()
