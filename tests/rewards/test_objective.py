"""What each loss makes of a pick, in closed form; and that it finds again what made the picks."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from annotate.records import Candidate, Outcome, Pick, Prompt, Question, Reason, Snapshot, Task
from rewards.judgements import CandidateSet, Judgement, candidate_sets
from rewards.losses import implied_pairs
from rewards.models.features import Features, collate
from rewards.models.preference import PreferenceOutput
from rewards.objective import preference_loss
from rewards.supervision import supervise
from rewards.trainer import SetCollator, to_dataset

OUTPUTS = ("aesthetics", "detail", "overall")
LOSSES = ("plackett_luce", "bradley_terry", "rao_kupper", "gaussian")


def judgement(best, worst, question=Question.DETAIL, **fields):
    return Judgement("p", "t", "ada", question, best, worst, **fields)


def batch_of(*judgements, ids=("a", "b", "c"), extra=()):
    sets = [CandidateSet(Prompt(id="p", text="p"), ids, judgements), *extra]
    blank = Features(torch.zeros(4, 2), torch.zeros(1, 2), torch.zeros(1))
    bank = {(name, "p"): blank for name in "abcdefgh"}
    collator = SetCollator(bank, lambda inputs: collate(inputs).as_dict())
    return collator(list(to_dataset(sets, OUTPUTS, keep_ties=True)))


def output(scores, variance=0.0, log_odds=1.0):
    """One member whose column "detail" has these scores."""
    logits = torch.zeros(len(scores), 1, 3, dtype=torch.float64)
    logits[:, 0, 1] = torch.as_tensor(scores, dtype=torch.float64)
    return PreferenceOutput(
        logits=logits.requires_grad_(),
        variance=torch.full_like(logits, variance),
        tie_log_odds=torch.full((3,), log_odds, dtype=torch.float64),
    )


def nll(scores, *judgements, loss="plackett_luce", **of):
    return preference_loss(output(scores, **of), batch_of(*judgements), loss).nll[0].tolist()


def neg_log_sigmoid(x):
    return math.log1p(math.exp(-x))


def test_a_pick_under_each_loss_by_hand():
    scores, pick = (1.0, 0.0, -0.5), judgement(0, 2)
    margins = (1.0, 1.5, 0.5)  # a over b, a over c, b over c
    [listwise] = nll(scores, pick)
    best = math.log(sum(math.exp(s) for s in scores)) - 1.0
    assert listwise == pytest.approx(best + neg_log_sigmoid(0.5))
    [pairwise] = nll(scores, pick, loss="bradley_terry")
    assert pairwise == pytest.approx(sum(map(neg_log_sigmoid, margins)) / 3)
    [ties] = nll(scores, pick, loss="rao_kupper", log_odds=0.7)
    assert ties == pytest.approx(sum(neg_log_sigmoid(d - 0.7) for d in margins) / 3)
    # Without variance a normal score is a number; with much of it nothing is known.
    assert nll(scores, pick, loss="gaussian") == pytest.approx([pairwise])
    assert nll((9.0, 0.0, -9.0), pick, loss="gaussian", variance=8.0)[0] > 0.004


def test_all_equal_under_each_loss_by_hand():
    scores, tie = (1.0, 0.0, -0.5), judgement(None, None)
    margins = (1.0, 1.5, 0.5)
    [pairwise] = nll(scores, tie, loss="bradley_terry")
    half = [(neg_log_sigmoid(d) + neg_log_sigmoid(-d)) / 2 for d in margins]
    assert pairwise == pytest.approx(sum(half) / 3)
    assert nll(scores, tie, loss="gaussian") == pytest.approx([pairwise])
    [ties] = nll(scores, tie, loss="rao_kupper", log_odds=0.7)
    p = [math.expm1(1.4) / ((1 + math.exp(0.7 - d)) * (1 + math.exp(0.7 + d))) for d in margins]
    assert ties == pytest.approx(-sum(map(math.log, p)) / 3)
    assert nll((2.0, 2.0, 2.0), tie)[0] == pytest.approx(0.0)


@pytest.mark.parametrize("loss", LOSSES)
def test_one_named_side_says_nothing_of_the_other(loss):
    """A best alone is indifferent to the order of the rest, a worst alone likewise."""
    best, worst = judgement(0, None), judgement(None, 2)
    one = nll((1.0, 0.3, -0.5), best, worst, loss=loss, variance=0.5)
    swapped = nll((1.0, -0.5, 0.3), best, loss=loss, variance=0.5)
    assert swapped == pytest.approx(one[:1])
    assert nll((0.3, 1.0, -0.5), worst, loss=loss, variance=0.5) == pytest.approx(one[1:])


def test_the_implied_pairs_are_those_of_a_judgement():
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    pairs = implied_pairs(mask, torch.tensor([2, 0]), torch.tensor([1, 2]))
    found = [sorted(map(tuple, of.nonzero().tolist())) for of in pairs]
    assert found == [sorted(judgement(2, 1).pairs(4)), sorted(judgement(0, 2).pairs(3))]


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_finite_and_only_on_what_was_judged(loss):
    result = output((3.0, -40.0, 900.0), variance=0.0)
    preference_loss(
        result, batch_of(judgement(1, 2), judgement(None, None)), loss
    ).nll.sum().backward()
    gradient = result.logits.grad[:, 0]
    assert torch.isfinite(gradient).all()
    assert gradient[:, 1].ne(0).any()
    assert not gradient[:, [0, 2]].any()


def test_all_bad_stands_below_what_won_elsewhere():
    bad = judgement(None, None, all_bad=True, anchors=("d", "e"))
    other = CandidateSet(Prompt(id="p", text="p"), ("f", "g"), (judgement(0, 1),))
    batch = batch_of(bad, extra=[other])
    result = output((0.5, 0.0, -1.0, 2.0, 1.0, 0.3, 0.1))  # a b c, then d e, then f g
    loss = preference_loss(result, batch).nll[0]
    expected = [neg_log_sigmoid(1.5 - s) for s in (0.5, 0.0, -1.0)]
    assert loss.tolist() == pytest.approx([sum(expected) / 3, neg_log_sigmoid(0.2)])
    loss[0].backward()
    signs = result.logits.grad[:, 0, 1].sign().tolist()
    assert signs == [1, 1, 1, -1, -1, 0, 0]
    [alone] = nll((0.5, 0.0, -1.0), judgement(None, None, all_bad=True))
    assert alone == pytest.approx(sum(neg_log_sigmoid(-s) for s in (0.5, 0.0, -1.0)) / 3)


def recovered(loss, batch, counts, start, make):
    """The parameters at which judgements seen ``counts`` times are likeliest."""
    parameters = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = (preference_loss(make(parameters), batch, loss).nll[0] * counts).sum()
        (value / counts.sum()).backward()
        return value

    optimizer.step(closure)
    return parameters.detach()


def test_utilities_are_recovered_from_simulated_picks():
    truth = torch.tensor([0.8, 0.1, -0.9], dtype=torch.float64)
    batch = batch_of(*(judgement(i, j) for i in range(3) for j in range(3) if i != j))
    p = (-preference_loss(output(truth), batch).nll[0]).exp().detach().numpy()
    counts = torch.from_numpy(np.random.default_rng(0).multinomial(60_000, p / p.sum()))

    def make(scores):
        logits = torch.zeros(3, 1, 3, dtype=torch.float64)
        return PreferenceOutput(logits=logits + scores[:, None, None])

    found = recovered("plackett_luce", batch, counts, [0.0, 0.0, 0.0], make)
    torch.testing.assert_close(found - found.mean(), truth - truth.mean(), atol=0.03, rtol=0)


def test_the_tie_threshold_is_recovered_from_simulated_picks():
    margin, log_odds = 0.6, 0.9
    batch = batch_of(judgement(0, 1), judgement(1, 0), judgement(None, None), ids=("a", "b"))
    win, loss = (1 / (1 + math.exp(log_odds - d)) for d in (margin, -margin))
    shares = [win, loss, 1 - win - loss]
    counts = torch.from_numpy(np.random.default_rng(1).multinomial(60_000, shares))

    def make(parameters):
        logits = torch.zeros(2, 1, 3, dtype=torch.float64)
        logits = logits + torch.stack([parameters[0], parameters[0] * 0])[:, None, None]
        return PreferenceOutput(logits=logits, tie_log_odds=softplus(parameters[1:]).expand(3))

    found = recovered("rao_kupper", batch, counts, [0.0, 0.0], make)
    assert found[0].item() == pytest.approx(margin, abs=0.03)
    assert softplus(found[1]).item() == pytest.approx(log_odds, abs=0.03)


def picked(name, task, annotator="ada", **fields):
    fields = {"outcome": Outcome.PICKED, "win": 0, "lose": 1, **fields}
    return Pick(id=name, task_id=task, annotator=annotator, **fields)


def snapshot_of(tasks, picks):
    prompt = Prompt(id="p", text="p")
    candidates = [
        Candidate(id=name, prompt_id="p", image_sha256=name, width=1, height=1) for name in "abcd"
    ]
    return Snapshot("0", Path(), (prompt,), tuple(candidates), tuple(tasks), tuple(picks))


def test_reasons_teach_the_criteria_that_they_name():
    reasons = (
        Reason(target="lose", criterion="detail"),
        Reason(target="win", criterion="aesthetics"),
        Reason(target="win", criterion="detail"),
    )
    task = Task(id="t", prompt_id="p", candidate_ids=("a", "b", "c"))
    snapshot = snapshot_of([task], [picked("1", "t", reasons=reasons)])
    sets = candidate_sets(snapshot)
    assert supervise(snapshot, sets) == tuple(sets)
    [taught] = supervise(snapshot, sets, reasons=True)
    found = [(j.question.value, j.best, j.worst) for j in taught.judgements]
    assert found == [("overall", 0, 1), ("aesthetics", 0, None), ("detail", 0, 1)]


def test_all_bad_is_anchored_at_the_winners_of_the_prompts_other_tasks():
    detail = Question.DETAIL
    tasks = [
        Task(id="bad", prompt_id="p", question=detail, candidate_ids=("c", "d")),
        Task(id="good", prompt_id="p", question=detail, candidate_ids=("b", "a")),
        Task(id="whole", prompt_id="p", candidate_ids=("a", "b")),
    ]
    bad = picked("1", "bad", outcome=Outcome.ALL_BAD, win=None, lose=None)
    snapshot = snapshot_of(tasks, [bad, picked("2", "good"), picked("3", "whole")])
    sets = candidate_sets(snapshot)
    assert len(sets) == 1
    _, last = supervise(snapshot, sets, all_bad="anchor")
    assert last.candidate_ids == ("c", "d")
    [judged] = last.judgements
    # "b" won on detail; "a" won overall, which is another question.
    assert (judged.all_bad, judged.anchors) == (True, ("b",))
    rows = to_dataset([last], OUTPUTS, keep_ties=False)
    assert (rows[0]["anchor_ids"], rows[0]["anchors"]) == (["b"], [[0]])


def test_a_careless_annotators_picks_weigh_less():
    rng = np.random.default_rng(0)
    tasks, picks = [], []
    for index in range(60):
        tasks.append(Task(id=f"t{index:02}", prompt_id="p", candidate_ids=("a", "b", "c", "d")))
        for who, noise in (("ada", 0.2), ("ben", 0.2), ("zoe", 50.0)):
            order = np.argsort(-(np.arange(4) + rng.normal(0, noise, 4)))
            win, lose = int(order[0]), int(order[-1])
            picks.append(picked(f"{index:02}{who}", f"t{index:02}", who, win=win, lose=lose))
    snapshot = snapshot_of(tasks, picks)
    sets = candidate_sets(snapshot)
    one = [replace(s, judgements=s.judgements[:1]) for s in sets]
    with pytest.raises(ValueError, match="no training task was answered by two"):
        supervise(snapshot, one, annotator_weights="reliability")
    [taught] = supervise(snapshot, sets, annotator_weights="reliability")
    weights = {j.annotator: j.weight for j in taught.judgements}
    assert weights["zoe"] < 0.5 * weights["ada"]
    assert np.mean([j.weight for j in taught.judgements]) == pytest.approx(1)
    temperatures = snapshot.annotator_temperatures([pick.id for pick in picks])
    ratio = temperatures["zoe"] / temperatures["ada"]
    assert weights["ada"] / weights["zoe"] == pytest.approx(ratio)
    assert "weight" in to_dataset([taught], OUTPUTS, keep_ties=True).column_names
