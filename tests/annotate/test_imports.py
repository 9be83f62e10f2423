"""Content from files: real rankings with ties, folders of candidates, and what is wrong in them.

The rankings are an excerpt of ImageReward's test set (see tests/data/README.md).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from studio import add_users, fill, make_candidates, make_prompts

from annotate.imports import import_folder, import_rankings
from annotate.pairs import compare_ranks
from annotate.records import Prompt
from annotate.snapshot import cut_snapshot
from annotate.store import Answer, StoreError

RANKINGS = Path(__file__).parents[1] / "data" / "imagereward_rankings.json"


def test_ranks_by_hand():
    assert compare_ranks([2, 1, 2]) == ([(1, 0), (1, 2)], [(0, 2)])
    assert compare_ranks([1]) == ([], [])


@pytest.fixture
def ranked_images(tmp_path):
    """A lossless WebP of its own colour for every file that the rankings name."""
    names = [name for entry in json.loads(RANKINGS.read_bytes()) for name in entry["generations"]]
    for number, name in enumerate(names):
        path = tmp_path / "ranked" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number % 256, number // 256, 9)).save(path, lossless=True)
    return tmp_path / "ranked"


def test_every_pair_and_tie_of_real_rankings_comes_out_as_it_went_in(
    make_place, ranked_images, tmp_path
):
    with make_place("sqlite").open() as store:
        (expert,) = add_users(store, "expert")
        done = import_rankings(store, RANKINGS, ranked_images, expert.id)
        again = import_rankings(store, RANKINGS, ranked_images, expert.id)
        snapshot = cut_snapshot(store, tmp_path / "snapshot")
        slots = store.status().slots
    entries = json.loads(RANKINGS.read_bytes())
    counts = [len(entry["ranking"]) for entry in entries]
    expected, ties = set(), 0
    for entry in entries:
        for a, rank_a in enumerate(entry["ranking"]):
            for b, rank_b in enumerate(entry["ranking"]):
                ties += rank_a == rank_b and a < b
                if rank_a < rank_b:
                    expected.add((f"{entry['id']}/{a}", f"{entry['id']}/{b}"))
    assert (done.prompts, done.candidates) == (len(entries), sum(counts))
    assert done.answers == sum(k * (k - 1) // 2 for k in counts) == len(expected) + ties
    assert (again.prompts, again.candidates, again.answers) == (0, 0, 0)
    for policy in ("win_lose", "implied_all"):
        assert {(p.chosen_id, p.rejected_id) for p in snapshot.pairs(policy)} == expected
    outcomes = Counter(pick.outcome.value for pick in snapshot.picks)
    assert outcomes == {"picked": len(expected), "all_equal": ties}
    assert slots == {"done": done.answers}
    first = entries[0]["generations"][0]
    with (
        Image.open(snapshot.image_path(snapshot.candidate_of[f"{entries[0]['id']}/0"])) as kept,
        Image.open(ranked_images / first) as given,
    ):
        assert kept.format == "PNG"
        assert kept.tobytes() == given.convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "must hold a list of rankings, got dict"),
        ('[{"id": "a", "prompt": "p", "generations": ["x"], "ranking": []}]', "entry 0.*1 images"),
    ],
)
def test_a_wrong_file_of_rankings_is_one_error(make_place, tmp_path, text, message):
    (tmp_path / "rankings.json").write_text(text)
    with (
        make_place("sqlite").open() as store,
        pytest.raises(StoreError, match=f"(?s)rankings.json.*{message}"),
    ):
        import_rankings(store, tmp_path / "rankings.json", tmp_path, 1)


def write_folder(folder: Path) -> None:
    prompts = make_prompts(2)
    candidates, images = make_candidates(prompts, each=3)
    (folder / "images").mkdir(parents=True)
    for name, data in images.items():
        (folder / "images" / f"{name}.png").write_bytes(data)
    for name, records in (("prompts", prompts), ("candidates", candidates)):
        lines = "".join(record.model_dump_json() + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)


def test_a_folder_of_candidates_comes_in_whole(make_place, tmp_path):
    write_folder(tmp_path / "generated")
    with make_place("sqlite").open() as store:
        done = import_folder(store, tmp_path / "generated")
        assert (done.prompts, done.candidates) == (2, 6)
        assert store.prompts() == make_prompts(2)


def test_the_content_of_a_snapshot_comes_in_too(make_place, tmp_path):
    with make_place("sqlite").open() as store:
        fill(store, tasks=1)
        (ada,) = add_users(store, "ada")
        (task,) = store.tasks()
        store.add_answers(ada.id, [Answer(task_id=task.id, outcome="all_bad")])
        cut_snapshot(store, tmp_path / "snapshot")
    with make_place("sqlite").open() as store:
        assert import_folder(store, tmp_path / "snapshot").candidates == 4


def test_a_wrong_line_names_its_file_and_number(make_place, tmp_path):
    good = Prompt(id="a", text="a poster").model_dump_json()
    (tmp_path / "prompts.jsonl").write_text(f"{good}\n{good.replace('text', 'txet')}\n")
    with make_place("sqlite").open() as store:
        with pytest.raises(StoreError, match=r"(?s)prompts\.jsonl, line 2.*txet"):
            import_folder(store, tmp_path)
        assert store.prompts() == []
        with pytest.raises(FileNotFoundError, match=r"neither prompts\.jsonl nor"):
            import_folder(store, tmp_path / "none")
