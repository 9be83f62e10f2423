"""What the policy hands out: checks, repeats, caps, extra slots, the random share."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from studio import add_users, answer, fill

from annotate.store import PreferenceStore, StoreError
from annotate.store.quality import CHOSEN_LANE


def work(store: PreferenceStore, user_id: int, ordinals: tuple[int, int] = (0, 2)) -> str | None:
    """Answer the next task with these ordinals as best and worst; the task's kind."""
    claim = store.claim(user_id)
    if claim is None:
        return None
    win, lose = (claim.display_order.index(ordinal) for ordinal in ordinals)
    key = f"{user_id}-{claim.assignment_id}-{claim.lease_token[:3]}"
    store.submit(user_id, answer(claim, key, win_position=win, lose_position=lose))
    return store.task(claim.task_id).kind


def add_keyed(store: PreferenceStore, kind: str, count: int, right: bool = True) -> None:
    """Checks out of the studio's own prompts, whose right answer is `work`'s, or the reverse."""
    groups = {
        prompt.id: [c.id for c in store.candidates(prompt.id)] for prompt in store.prompts()[:count]
    }
    for task in store.add_tasks(groups, kind=kind, annotators_per_task=0):
        best, worst = task.candidate_ids[0], task.candidate_ids[2]
        store.set_key(task.id, *([best], [worst]) if right else ([worst], [best]))


def test_golds_come_at_their_rate_hidden_in_the_queue(store):
    # Each draw is a fair coin: 24 tasks leave room for fewer than both golds once in a million.
    fill(store, tasks=24, each=3, annotators=2)
    ada, bo = add_users(store, "ada", "bo")
    add_keyed(store, "gold", 2)
    store.set_policy(gold_rate=0.5)
    assert Counter(work(store, ada.id) for _ in range(26)) == {"standard": 24, "gold": 2}
    assert work(store, ada.id) is None
    assert [work(store, bo.id, (2, 0)) for _ in range(26)].count("gold") == 2
    found = {row.user_id: (row.answered, row.correct) for row in store.keyed_answers()}
    assert found == {ada.id: (2, 2), bo.id: (2, 0)}
    # What was asked to test people is no preference.
    assert {task.kind for task in store.labelled()[2]} == {"standard"}
    assert {task.kind for task in store.labelled(kinds=["gold"])[2]} == {"gold"}


def test_nothing_that_an_annotator_sees_tells_a_check_before_it_comes(store):
    fill(store, tasks=24, each=3, annotators=2)
    people = add_users(store, "ada", "bo")
    add_keyed(store, "gold", 3)
    store.set_policy(gold_rate=0.5, repeat_rate=0.5, repeat_gap=2)
    kinds: dict[int, Counter[str]] = {user.id: Counter() for user in people}
    ahead = {user.id: store.peek(user.id) for user in people}
    left = {user.id: 24 for user in people}
    for turn in range(20):
        # Both look ahead before either goes on: what one was shown is not given to the other.
        for user in people:
            claim = store.claim(user.id)
            assert claim.media == ahead[user.id]
            assert (claim.progress.done, claim.progress.remaining) == (turn, left[user.id])
            ahead[user.id] = store.peek(user.id)
            assert store.peek(user.id) == ahead[user.id] != claim.media
            assert all(store.media(user.id, token).is_file() for token in ahead[user.id])
            kinds[user.id][store.task(claim.task_id).kind] += 1
            store.submit(user.id, answer(claim, f"{user.id}-{turn}"))
            left[user.id] -= 1
    assert all(found["gold"] + found["repeat"] >= 3 for found in kinds.values())


def test_numbers_that_a_browser_sees_do_not_grow_with_time(store):
    numbers = [*range(1000), 2**40 - 1]
    public = [store.public_number(number) for number in numbers]
    assert [store.assignment_of(number) for number in public] == numbers
    assert len(set(public)) == len(numbers)
    assert all(0 <= number < 2**40 for number in public)
    rising = sum(a < b for a, b in pairwise(public))
    assert 400 < rising < 600


def test_what_was_shown_ahead_is_given_to_another_only_when_nothing_else_is_left(store):
    fill(store, tasks=2, each=3)
    ada, bo = add_users(store, "ada", "bo")
    shown = store.peek(ada.id)
    first = store.claim(bo.id)
    store.submit(bo.id, answer(first, "first"))
    last = store.claim(bo.id)
    assert last.task_id != first.task_id
    assert (store.claim(ada.id), store.peek(ada.id)) == (None, ())
    store.submit(bo.id, answer(last, "last"))
    assert shown
    assert store.status().slots == {"done": 2}


def test_a_qualification_set_comes_first_and_shuts_out_who_fails_it(store):
    fill(store, tasks=3, each=3, annotators=3)
    ada, bo = add_users(store, "ada", "bo")
    (lea,) = add_users(store, "lea", role="lead")
    add_keyed(store, "qualification", 2)
    store.set_policy(qualification_tasks=2, qualification_accuracy=0.5)
    assert [work(store, ada.id) for _ in range(3)] == ["qualification"] * 2 + ["standard"]
    assert [work(store, bo.id, (2, 0)) for _ in range(3)] == ["qualification"] * 2 + [None]
    assert work(store, lea.id) == "standard"
    state = store.qualification(bo.id)
    assert (state.answered, state.correct, state.complete, state.passed) == (2, 0, True, False)
    assert store.qualification(ada.id).passed


def test_repeats_show_the_same_candidates_to_the_same_person_again(store):
    fill(store, tasks=4, each=3, annotators=2)
    ada, bo = add_users(store, "ada", "bo")
    store.set_policy(repeat_rate=0.5, repeat_gap=2)
    kinds = Counter()
    while kind := work(store, ada.id):
        kinds[kind] += 1
    assert kinds["standard"] == 4
    pairs = store.repeats()
    assert len(pairs) == kinds["repeat"]
    for first, again in pairs:
        assert (first.win, first.lose) == (again.win, again.lose)
        assert first.task_id != again.task_id
        shown = store.task(first.task_id).candidate_ids
        assert store.task(again.task_id).candidate_ids == shown
    assert store.progress(bo.id).remaining == 4


def test_a_cap_ends_the_work_of_one_person(store):
    fill(store, tasks=3)
    ada, bo = add_users(store, "ada", "bo")
    store.set_policy(annotator_cap=2)
    assert [work(store, ada.id) for _ in range(3)] == ["standard", "standard", None]
    assert work(store, bo.id) == "standard"


def test_disagreement_asks_one_more_person_and_undo_takes_that_back(store):
    fill(store, tasks=1, each=3, annotators=2)
    ada, bo, cy = add_users(store, "ada", "bo", "cy")
    store.set_policy(max_extra_slots=1)
    work(store, ada.id)
    work(store, bo.id, (2, 0))
    assert store.progress(cy.id).remaining == 1
    store.undo(bo.id)
    assert store.progress(cy.id).remaining == 0
    claim = store.claim(bo.id)
    order = claim.display_order
    agreed = answer(claim, "same", win_position=order.index(0), lose_position=order.index(2))
    store.submit(bo.id, agreed)
    assert store.claim(cy.id) is None
    store.undo(bo.id)
    work(store, bo.id, (1, 0))
    assert work(store, cy.id) == "standard"
    assert store.status().slots == {"done": 3, "void": 1}


def test_scores_order_the_queue_and_leave_the_random_share(store):
    tasks = [task.id for task in fill(store, tasks=20, each=3)]
    ada, bo = add_users(store, "ada", "bo")
    values = {task_id: float(place) for place, task_id in enumerate(tasks[:10])}
    assert store.prioritise(values) == 10
    store.set_policy(random_share=0)
    assert store.claim(ada.id).task_id == tasks[9]
    store.set_policy(random_share=1)
    assert store.claim(bo.id).task_id in tasks[10:]
    for user in (ada, bo):
        work(store, user.id)
    assert len(store.judged().by_chance) == 1
    assert CHOSEN_LANE == 0
    with pytest.raises(StoreError, match="not a number"):
        store.prioritise({tasks[0]: float("nan")})


def test_a_wrong_policy_or_key_names_its_choices(store):
    (task,) = fill(store, tasks=1, each=3)
    with pytest.raises(StoreError, match=r"(?s)gold_rat.*fields are: gold_rate"):
        store.set_policy(gold_rat=0.1)
    with pytest.raises(StoreError, match=r"less than or equal to 0\.5"):
        store.set_policy(gold_rate=0.9)
    with pytest.raises(StoreError, match="is standard; a key is for gold"):
        store.set_key(task.id, [task.candidate_ids[0]])
    assert store.policy().gold_rate == 0
