"""Contact sheets: what a run is paid for goes to the designers, and their answers come back."""

from __future__ import annotations

import pytest
from PIL import Image

from align import cli
from annotate.records import Outcome, Prompt
from annotate.store import PreferenceStore, Submission
from rewards.base import RewardItem
from rewards.contact_sheets import SHEETS, Picture, choose_groups, read_sheets, write_sheet

PROMPTS = [Prompt(id=f"p{i}", text=f"poster {i}") for i in range(3)]


def items(groups):
    return [RewardItem(f"{i}", f"g{group}", "p") for i, group in enumerate(groups)]


def test_the_best_paid_prompts_with_their_best_and_worst():
    rewards = [0, 4, 2, 1, 3, 9, None, 5, 7, 6]
    groups = choose_groups(items("aaaaabbccc"), rewards, prompts=None, images=3)
    # b has one image left; of a's five the first, the middle and the last by reward
    assert groups == [[8, 9, 7], [1, 2, 0]]
    assert choose_groups(items("aaaaabbccc"), rewards, prompts=1, images=2) == [[8, 7]]
    assert choose_groups(items("ab"), [1.0, 2.0], prompts=None) == []


def picture(prompt, grey, reward):
    return Picture(PROMPTS[prompt], Image.new("RGB", (40, 30), (grey,) * 3), reward)


@pytest.fixture
def run(tmp_path):
    """A due sheet of two prompts, brighter paid better, and one at an alarm."""
    folder = tmp_path / "run"
    due = [[picture(p, grey, grey / 10) for grey in (90, 60, 30)] for p in range(2)]
    write_sheet(folder / SHEETS / "rollout-000010-0", 10, "", due)
    twins = [picture(0, 7, 0.3), picture(0, 7, 0.3)]
    alarm = [[picture(2, 80, 2.0), picture(2, 20, 1.0)], twins]
    write_sheet(folder / SHEETS / "rollout-000012-0", 12, "saturation drifts", alarm)
    return folder


def test_a_sheet_says_what_was_paid_and_its_pictures_do_not(run):
    due, alarm = read_sheets(run).values()
    assert [(task.prompt_id, list(task.rewards.values())) for task in due.tasks] == [
        ("p0", [9, 6, 3]), ("p1", [9, 6, 3]),
    ]  # fmt: skip
    assert (alarm.rollout, alarm.reason, len(alarm.tasks)) == (12, "saturation drifts", 1)
    folder = run / SHEETS / "rollout-000010-0"
    assert "reward" not in (folder / "candidates.jsonl").read_text()
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width == 4 * 192
    (folder / "sheet.json").write_text('{"rollout": 1}')
    with pytest.raises(ValueError, match=r"rollout-000010-0/sheet\.json is damaged"):
        read_sheets(run)


def answer(store, user, brighter_wins):
    """Pick the brightest image as the best and the darkest as the worst, or the other way round;
    the alarm's pictures are all bad to whom they are."""
    count = 0
    while (claim := store.claim(user.id)) is not None:
        shown = [store.media(user.id, token) for token in claim.media]
        greys = []
        for path in shown:
            with Image.open(path) as image:
                greys.append(image.getpixel((0, 0))[0])
        order = sorted(range(len(greys)), key=greys.__getitem__, reverse=brighter_wins)
        picked = len(greys) == 3
        choice = {"win_position": order[0], "lose_position": order[-1]} if picked else {}
        store.submit(
            user.id,
            Submission(
                idempotency_key=f"answer-{user.id}-{count}",
                assignment_id=claim.assignment_id,
                lease_token=claim.lease_token,
                outcome=Outcome.PICKED if picked else Outcome.ALL_BAD,
                **choice,
            ),
        )
        count += 1
    return count


def test_designers_answer_blindly_and_their_agreement_comes_back(run, tmp_path, capsys):
    studio = str(tmp_path / "studio")

    def command():
        assert cli.main(["contact", str(run), "--studio", studio, "--annotators=2"]) == 0
        return capsys.readouterr().out.splitlines()

    with PreferenceStore.open(studio) as store:
        users = [store.add_user(name, "a long password") for name in ("one", "two")]
    assert command() == [
        "rollout-000010-0: 2 blind tasks, 0 answers",
        "rollout-000012-0: 1 blind tasks, 0 answers   (saturation drifts)",
    ]
    with PreferenceStore.open(studio) as store:
        assert answer(store, users[0], brighter_wins=True) == 3
    due, alarm = command()
    assert due.startswith("rollout-000010-0: 2 blind tasks, 2 answers; designers order best and")
    assert "in 100 % [100, 100], and call its favourite the worst in 0 %" in due
    assert alarm == "rollout-000012-0: 1 blind tasks, 1 answers; 1 all bad   (saturation drifts)"
    with PreferenceStore.open(studio) as store:
        assert answer(store, users[1], brighter_wins=False) == 3
        # What they said is preference data like any other.
        assert len(store.labelled()[3]) == 6
    assert "in 50 % [50, 50], and call its favourite the worst in 50 %" in command()[0]


def test_a_run_without_sheets_says_how_it_gets_some(tmp_path, capsys):
    PreferenceStore.open(tmp_path / "studio").close()
    assert cli.main(["contact", str(tmp_path), "--studio", str(tmp_path / "studio")]) == 2
    assert "set contact_sheet_every" in capsys.readouterr().err
