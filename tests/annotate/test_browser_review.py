"""The review pages in a real browser: figures, disputes, runs; both languages, light and dark."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser_tools import DESKTOP, Watch, press, save_picture, serious, served
from playwright.sync_api import Browser, Page, expect
from review_studio import HOSTILE_RUN, RUN, answer_all, make_review_studio
from web_studio import PASSWORD

from annotate.store import PreferenceStore
from annotate.web.app import create_app
from annotate.web.i18n import catalogue

EN, ZH = catalogue("en"), catalogue("zh")
SIZES = ((1920, 1080), (768, 1024))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreferenceStore]:
    with make_review_studio(tmp_path_factory.mktemp("review")) as store:
        yield store


@pytest.fixture(scope="module")
def url(store: PreferenceStore) -> Iterator[str]:
    with served(create_app(store)) as url:
        yield url


def review_page(browser: Browser, url: str, name: str, view: str, **options) -> tuple[Page, Watch]:
    context = browser.new_context(**{"viewport": DESKTOP, "locale": "en-GB", **options})
    page = context.new_page()
    page.set_default_timeout(60_000)
    watch = Watch(page)
    page.goto(f"{url}/login?next=/review")
    page.fill("input[name=name]", name)
    page.fill("input[name=password]", PASSWORD)
    page.keyboard.press("Enter")
    expect(page.locator(".rv[data-state=ready]")).to_be_visible(timeout=60_000)
    page.goto(f"{url}/review#{view}")
    expect(page.locator(".rv-views [aria-current]")).to_have_attribute("href", f"#{view}")
    return page, watch


def figure_of(page: Page, title: str):
    heading = page.get_by_role("heading", name=title, exact=True)
    return page.locator(".rv-figure", has=heading)


def wait_for_pictures(page: Page, selector: str) -> None:
    loaded = "s => [...document.querySelectorAll(s)].every(image => image.naturalWidth)"
    page.wait_for_function(loaded, arg=selector)


def pictures(page: Page, name: str, tmp_path) -> None:
    """Of the page at three widths."""
    save_picture(page, name, tmp_path)
    for width, height in SIZES:
        page.set_viewport_size({"width": width, "height": height})
        save_picture(page, f"{name}-{width}", tmp_path)
    page.set_viewport_size(DESKTOP)


def test_figures_show_their_age_their_source_and_both_languages(browser, url, store, tmp_path):
    page, watch = review_page(browser, url, "rita", "quality")
    agreement = page.locator(
        ".rv-figure", has=page.get_by_role("heading", name="Agreement", exact=True)
    )
    expect(agreement.get_by_role("rowheader", name="Alpha of the best")).to_be_visible()
    expect(page.locator(".rv-age")).to_contain_text("As of")
    expect(agreement.locator(".rv-source")).to_contain_text("the newest 12")
    with page.expect_download() as download:
        agreement.get_by_role("link", name="CSV").click()
    assert download.value.path().read_text().startswith("measure,value,low,high,n\nalpha of the")
    assert serious(page) == []
    pictures(page, "quality", tmp_path)

    page.get_by_role("link", name=EN["review.labelling"], exact=True).focus()
    press(page, "Enter")
    expect(page.locator("h1")).to_be_focused()
    expect(page.locator(".rv-headline dd").first).to_have_text("12")
    expect(page.get_by_role("img", name="12 answers from 2026-01-05 to 2026-01-07")).to_be_visible()
    page.get_by_role("button", name="中文").click()
    expect(page.locator("h1")).to_have_text(ZH["review.labelling"])
    expect(page.get_by_role("heading", name=ZH["figure.fatigue"])).to_be_visible()
    page.get_by_role("button", name=ZH["tools.theme"]).click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert serious(page) == []
    save_picture(page, "throughput-zh-dark", tmp_path)
    before = page.locator(".rv-headline dd").nth(1).inner_text()
    answer_all(store, "rita", store.label_events()[-1].submitted_at)  # nothing is left for her
    with page.expect_response("**/api/review/figures") as renewed:
        page.get_by_role("button", name=ZH["review.refresh"]).click()
    assert renewed.value.request.method == "POST"
    expect(page.locator(".rv-headline dd").nth(1)).to_have_text(before)
    watch.assert_quiet(url)
    page.context.close()


def test_a_reviewer_adjudicates_by_the_keyboard_and_takes_it_back(browser, url, store, tmp_path):
    page, watch = review_page(browser, url, "rita", "disputes")
    waiting = store.disputes()
    assert len(waiting) == 2
    prompt = page.locator(".rv-dispute-prompt")
    expect(prompt).to_have_text(waiting[0].prompt)
    page.wait_for_function(
        "[...document.querySelectorAll('.rv-card img')].every(i => i.naturalWidth)"
    )
    press(page, "2", "Shift+1")
    expect(page.locator(".rv-status")).to_have_text("Best B, worst A")
    assert serious(page) == []
    pictures(page, "disputes", tmp_path)
    before = store.labelled(reviewed=False)
    press(page, "Enter")
    expect(prompt).to_have_text(waiting[1].prompt)
    expect(prompt).to_be_focused()
    (given,) = store.reviews()
    assert (given["task"], given["decision"], given["outcome"]) == (
        waiting[0].task_id, "override", "picked",
    )  # fmt: skip
    (pick,) = [pick for pick in store.labelled()[3] if pick.task_id == waiting[0].task_id]
    assert (pick.win, pick.lose) == (1, 0)
    assert store.labelled(reviewed=False) == before  # the answers themselves are as they were
    press(page, "z")
    expect(prompt).to_have_text(waiting[0].prompt)
    assert store.disputes() == waiting
    page.locator("select").select_option("guideline_gap")
    page.get_by_role("button", name=EN["dispute.keep"]).click()
    expect(prompt).to_have_text(waiting[1].prompt)
    assert store.reviews()[0]["cause"] == "guideline_gap"
    page.get_by_label(EN["settings.shortcuts"]).uncheck()
    page.evaluate("document.activeElement.blur()")
    press(page, "x")
    page.get_by_role("button", name=EN["dispute.discard"]).click()
    expect(page.get_by_text(EN["dispute.none"])).to_be_visible()
    assert [row["decision"] for row in store.reviews()] == ["discard", "confirm", "override"]
    assert serious(page) == []
    watch.assert_quiet(url)
    page.context.close()


def test_an_engineer_reads_a_run_and_sends_its_samples_out_blind(browser, url, store, tmp_path):
    page, watch = review_page(browser, url, "eva", "runs")
    expect(page.locator(".rv-comparison svg.rv-chart")).to_be_visible()
    assert serious(page) == []
    page.get_by_role("link", name=HOSTILE_RUN).click()
    expect(page.locator("h1")).to_have_text(HOSTILE_RUN)
    expect(page.get_by_text(EN["run.gone"])).to_be_visible()
    assert page.title() == f"{HOSTILE_RUN} · Winsome"
    page.go_back()
    page.get_by_role("link", name=RUN).click()
    expect(page.locator("h1")).to_have_text(RUN)
    for chart in ("reward", "kl", "grad_norm", "errors", "held_out", "gold", "drift"):
        figure = page.locator(
            ".rv-figure", has=page.get_by_role("heading", name=EN[f"chart.{chart}"], exact=True)
        )
        expect(figure.get_by_role("img")).to_be_visible()
        expect(figure.locator(".rv-source")).to_contain_text("777777777777")
    expect(page.locator(".rv-alarms li")).to_have_count(2)
    expect(page.locator(".rv-alarms")).to_contain_text("step 41: saturation +0.40")
    expect(page.locator(".rv-bubble")).to_have_count(4)
    assert serious(page) == []
    pictures(page, "run", tmp_path)
    samples = page.locator(".rv-samples")
    assert samples.locator("thead th").all_inner_texts() == ["Prompt", "step-2", "step-10"]
    samples.locator("td button").first.click()
    press(page, "ArrowRight", "ArrowDown")
    expect(page.locator(".rv-viewer p").first).to_contain_text("step-10 · ")
    press(page, "Escape")
    samples.scroll_into_view_if_needed()
    page.wait_for_function(
        "[...document.querySelectorAll('.rv-samples img')].every(i => i.naturalWidth)"
    )
    page.get_by_role("button", name=EN["blind.send"]).click()
    expect(page.get_by_text("Blind tasks that now wait for annotators: 2.")).to_be_visible()
    save_picture(page, "run-samples", tmp_path)
    tasks = store.tasks(kind="blind-ab")
    assert [len(task.candidate_ids) for task in tasks] == [2, 2]

    for number, name in enumerate(("mei", "jonas")):
        assert answer_all(store, name, store.label_events()[-1].submitted_at, number) == 2
    page.goto(f"{url}/review#models")
    page.get_by_role("button", name=EN["review.refresh"]).click()
    blind = figure_of(page, EN["figure.blind"])
    expect(blind.get_by_role("row").nth(1)).to_contain_text("0.750")
    assert serious(page) == []
    save_picture(page, "models", tmp_path)
    watch.assert_quiet(url)
    page.context.close()
