"""A vision-language model as judge, by a rubric for each criterion, over OpenAI's protocol.

The judge's answer is one token, and what counts is its probability, not the token drawn: a rating's
expectation tells apart images that the likeliest rating makes equal, and needs no sampling.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import combinations
from typing import Any, Literal

from annotate.records import language
from rewards.base import RewardItem, Score, ScorerSpec
from rewards.scorers.rubrics import RUBRICS, Language, Rubric, pairwise_text, pointwise_text
from rewards.service.cache import ScoreCache
from rewards.service.calls import ClientSettings, ServiceError
from rewards.service.chat import ChatClient
from rewards.service.schema import encode_png, encode_sources

__all__ = ["JudgeScorer", "JudgeSettings", "PairPreference"]


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """What the judge is asked, and what of its answers is accepted."""

    model: str
    """As the server names it."""
    criteria: tuple[str, ...] = tuple(RUBRICS)
    mode: Literal["pointwise", "pairwise"] = "pointwise"
    language: Literal["prompt", "en", "zh"] = "prompt"
    """Of the rubric; ``prompt``: Chinese where the prompt is."""
    scale: int = 5
    """Ratings are 1 to this; one digit."""
    min_mass: float = 0.5
    """Probability that must lie on answers of the asked form; below it there is no score."""

    def __post_init__(self) -> None:
        if self.mode not in ("pointwise", "pairwise"):
            raise ValueError(f"mode must be pointwise or pairwise, got {self.mode!r}")
        if not self.criteria:
            raise ValueError("criteria must name at least one criterion, got none")
        if not 2 <= self.scale <= 9:
            raise ValueError(f"scale must lie between 2 and 9, got {self.scale}")
        if not 0.0 < self.min_mass <= 1.0:
            raise ValueError(f"min_mass must be above 0 and at most 1, got {self.min_mass}")


@dataclass(frozen=True, slots=True)
class PairPreference:
    """How the judge prefers the first of two images to the second."""

    log_odds: Mapping[str, float]
    """By criterion: the mean of both orders, so that a liking for a place cancels out."""
    consistency: float
    """Share of the criteria on which both orders prefer the same image."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the judge sees of an item, as PNG."""

    sources: tuple[bytes, ...]
    png: bytes


@dataclass(frozen=True, slots=True)
class _Question:
    system: str
    user: str
    pngs: tuple[bytes, ...]
    read: Callable[[Mapping[str, float]], Score]


class JudgeScorer:
    """Scores by a judge behind ``POST {url}/chat/completions``.

    - ``pointwise``: each criterion is the expected rating, sum of r * p(r) over the probability of
      all ratings; ``value`` is their mean, ``sigma`` its deviation by the judge's own doubt.
    - ``pairwise``: each criterion is the mean probability that the image beats another of its
      group, each pair asked in both orders. All samples of a group must come in one call; an image
      alone is not applicable. n images take n (n - 1) questions a criterion.

    The source images of an item that edits are shown before its image, and the text says which is
    which; in ``pairwise`` they are those of the first of the two.

    An answer that is late, of another form, not a rating, or by another model than the first
    answer's is an error of its item.

    Args:
        url: of the API, e.g. ``http://127.0.0.1:8000/v1``.
        rubrics: beside, or instead of, those of `rewards.scorers.rubrics`.
        extra: further fields of each request, such as ``chat_template_kwargs``.

    Raises:
        ServiceError: the server does not answer, or does not serve the model.
        ValueError: a criterion has no rubric.
    """

    def __init__(
        self,
        url: str,
        settings: JudgeSettings,
        client: ClientSettings | None = None,
        *,
        name: str = "judge",
        rubrics: Mapping[str, Rubric] | None = None,
        extra: Mapping[str, Any] | None = None,
        cache: ScoreCache | None = None,
    ):
        known = {**RUBRICS, **(rubrics or {})}
        if unknown := [criterion for criterion in settings.criteria if criterion not in known]:
            raise ValueError(f"no rubric for {unknown}; there is one for {', '.join(known)}")
        self.url, self.settings, self.client = url, settings, client or ClientSettings()
        self._rubrics = {criterion: known[criterion] for criterion in settings.criteria}
        self._cache = cache
        self.chat = ChatClient(url, settings.model, self.client, extra)
        identity = [
            settings.model, settings.mode, settings.language, settings.scale, settings.min_mass,
            [[c, *astuple(r)] for c, r in self._rubrics.items()], sorted((extra or {}).items()),
        ]  # fmt: skip
        self.spec = ScorerSpec(
            name=name,
            version=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
            components=settings.criteria,
            needs=frozenset({"image"}),
            backbone=settings.model,
            groupwise=settings.mode == "pairwise",
        )

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        """One score per item, in order; see `rewards.base.Scorer`."""
        if self.settings.mode == "pairwise":
            return self._win_rates(items)
        shown = _show(items)
        asked = [
            (index, criterion)
            for index, own in enumerate(shown)
            if isinstance(own, _Shown)
            for criterion in self._rubrics
        ]
        answers = self._ask_all([self._rating(items[i].prompt, c, shown[i]) for i, c in asked])
        of_item: dict[int, dict[str, Score]] = defaultdict(dict)
        for (index, criterion), answer in zip(asked, answers, strict=True):
            of_item[index][criterion] = answer
        return [
            Score(None, error=own) if isinstance(own, str) else _mean(of_item[index])
            for index, own in enumerate(shown)
        ]

    def compare(self, pairs: Sequence[tuple[RewardItem, RewardItem]]) -> list[PairPreference]:
        """How the first of each pair is preferred; swapping a pair turns the sign to the bit."""
        shown = _show([item for pair in pairs for item in pair])
        prompts = [first.prompt for first, _ in pairs]
        return self._compare(list(zip(prompts, shown[::2], shown[1::2], strict=True)))

    def _compare(
        self, pairs: Sequence[tuple[str, _Shown | str, _Shown | str]]
    ) -> list[PairPreference]:
        """`compare` of prompts and what is shown."""
        asked = [
            (index, criterion, order)
            for index, (_, *shown) in enumerate(pairs)
            if all(isinstance(own, _Shown) for own in shown)
            for criterion in self._rubrics
            for order in (1, -1)
        ]
        answers = self._ask_all(
            [self._choice(pairs[i][0], c, pairs[i][1:][::order]) for i, c, order in asked]
        )
        found: dict[int, dict[str, list[Score]]] = defaultdict(lambda: defaultdict(list))
        for (index, criterion, _), answer in zip(asked, answers, strict=True):
            found[index][criterion].append(answer)
        return [
            _preference(found[index])
            if index in found
            else _lost(next(own for own in shown if isinstance(own, str)))
            for index, (_, *shown) in enumerate(pairs)
        ]

    def _win_rates(self, items: Sequence[RewardItem]) -> list[Score]:
        groups: dict[str, list[int]] = defaultdict(list)
        for index, item in enumerate(items):
            groups[item.group_id].append(index)
        pairs = [pair for members in groups.values() for pair in combinations(members, 2)]
        shown = _show(items)
        found = self._compare([(items[a].prompt, shown[a], shown[b]) for a, b in pairs])
        wins: list[dict[str, list[float]]] = [defaultdict(list) for _ in items]
        errors = {index: own for index, own in enumerate(shown) if isinstance(own, str)}
        for (a, b), preference in zip(pairs, found, strict=True):
            if preference.error is not None:
                # An image that cannot be read is not the other one's fault.
                if not {a, b} & errors.keys():
                    errors |= dict.fromkeys((a, b), preference.error)
                continue
            for criterion, odds in preference.log_odds.items():
                wins[a][criterion].append(_sigmoid(odds))
                wins[b][criterion].append(_sigmoid(-odds))
        for members in groups.values():
            for index in members if len(members) > 1 else ():
                if index not in errors and not wins[index]:
                    errors[index] = "no other image of its group could be read"
        return [
            Score(None, error=errors[index]) if index in errors else _rate(wins[index])
            for index in range(len(items))
        ]

    # Questions ------------------------------------------------------------------------------------

    def _language(self, prompt: str) -> Language:
        wanted = self.settings.language
        if wanted != "prompt":
            return wanted
        return "zh" if language(prompt) == "zh" else "en"

    def _rating(self, prompt: str, criterion: str, shown: _Shown | str) -> _Question:
        assert isinstance(shown, _Shown)
        rubric, scale = self._rubrics[criterion], self.settings.scale
        count = len(shown.sources)
        system, user = pointwise_text(rubric, prompt, scale, self._language(prompt), count)
        return _Question(system, user, (*shown.sources, shown.png), self._read_rating)

    def _choice(self, prompt: str, criterion: str, shown: Sequence[_Shown | str]) -> _Question:
        first, second = shown
        assert isinstance(first, _Shown)
        assert isinstance(second, _Shown)
        rubric, count = self._rubrics[criterion], len(first.sources)
        system, user = pairwise_text(rubric, prompt, self._language(prompt), count)
        return _Question(system, user, (*first.sources, first.png, second.png), self._read_choice)

    def _read_rating(self, log_probs: Mapping[str, float]) -> Score:
        """The expected rating and its deviation."""
        names = [str(rating) for rating in range(1, self.settings.scale + 1)]
        mass = self._mass(log_probs, names)
        total = sum(mass.values())
        shares = {name: share / total for name, share in mass.items()}
        mean = sum(int(name) * share for name, share in shares.items())
        variance = sum((int(name) - mean) ** 2 * share for name, share in shares.items())
        return Score(mean, sigma=math.sqrt(max(variance, 0.0)))

    def _read_choice(self, log_probs: Mapping[str, float]) -> Score:
        """log p(A) - log p(B). A letter that is not listed is at most as likely as the least that
        is, and taken for that."""
        mass = self._mass(log_probs, ["A", "B"])
        least = max(math.exp(min(log_probs.values())), 1e-12)
        first, second = (max(mass.get(name, 0.0), least) for name in ("A", "B"))
        return Score(math.log(first) - math.log(second))

    def _mass(self, log_probs: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
        """Probability of each name that is listed.

        Raises:
            ValueError: too little lies on them for an answer.
        """
        mass: dict[str, float] = defaultdict(float)
        for token, log_prob in log_probs.items():
            plain = unicodedata.normalize("NFKC", token).strip().upper()
            if plain in names:
                mass[plain] += math.exp(log_prob)
        total = sum(mass.values())
        if total < self.settings.min_mass:
            likeliest = max(log_probs, key=lambda token: log_probs[token])
            raise ValueError(
                f"{total:.0%} of the judge's probability lies on {names[0]} to {names[-1]}, "
                f"expected at least {self.settings.min_mass:.0%}; likeliest is {likeliest!r}"
            )
        return mass

    # The server -----------------------------------------------------------------------------------

    def _ask_all(self, questions: Sequence[_Question]) -> list[Score]:
        if not questions:
            return []
        with ThreadPoolExecutor(self.client.concurrency) as pool:
            return list(pool.map(self._ask, questions))

    def _ask(self, question: _Question) -> Score:
        """What the answer is worth, or why there is none."""
        body = self.chat.request(question.system, question.user, question.pngs)
        key = hashlib.sha256(self.spec.version.encode() + body).hexdigest()
        if self._cache is not None and (known := self._cache.get(key)) is not None:
            return known
        try:
            score = question.read(self.chat.first_token(body))
        except (ServiceError, ValueError) as error:
            return Score(None, error=f"{self.url}: {error}")
        if self._cache is not None:
            self._cache.put(key, score)
        return score


def _mean(of_criteria: Mapping[str, Score]) -> Score:
    """The mean of the criteria, or the first error."""
    values: dict[str, float] = {}
    variance = 0.0
    for criterion, score in of_criteria.items():
        if score.value is None:
            return Score(None, error=f"{criterion}: {score.error}")
        values[criterion] = score.value
        variance += (score.sigma or 0.0) ** 2
    count = len(values)
    return Score(sum(values.values()) / count, values, sigma=math.sqrt(variance) / count)


def _preference(answers: Mapping[str, Sequence[Score]]) -> PairPreference:
    odds: dict[str, float] = {}
    agreeing = 0
    for criterion, (forth, back) in answers.items():
        if forth.value is None or back.value is None:
            return _lost(f"{criterion}: {forth.error or back.error}")
        odds[criterion] = (forth.value - back.value) / 2
        agreeing += (forth.value > 0) == (back.value < 0)
    return PairPreference(odds, agreeing / len(odds))


def _lost(error: str) -> PairPreference:
    return PairPreference({}, 0.0, error)


def _rate(wins: Mapping[str, Sequence[float]]) -> Score:
    rates = {criterion: sum(shares) / len(shares) for criterion, shares in wins.items()}
    return Score(sum(rates.values()) / len(rates), rates) if rates else Score(None)


def _sigmoid(x: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * x))


def _show(items: Sequence[RewardItem]) -> list[_Shown | str]:
    """Of each item its pictures as lossless PNG, or why there are none."""
    found: list[_Shown | str] = []
    for item, sources in zip(items, encode_sources(items), strict=True):
        if isinstance(sources, str):
            found.append(sources)
        elif item.image is None:
            found.append("there is no image")
        else:
            try:
                found.append(_Shown(sources, encode_png(item.image.convert("RGB"))))
            except (OSError, SyntaxError) as error:
                found.append(f"the image cannot be read: {error}")
    return found
