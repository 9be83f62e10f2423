"""Plackett-Luce choices with a temperature for each annotator; pure numpy.

A choice is one item taken from a shown set, as the best of them or as the worst. Annotator a takes
item c from the set S with

    P(c | S, a) = exp(s b_a u_c) / sum_{j in S} exp(s b_a u_j),    s = +1 for best, -1 for worst,

where ``u`` are utilities and ``1 / b_a`` is the annotator's temperature: near 0 decides by the
utilities alone, large clicks at random. A ranking is a choice of the best again and again from
what is left (Plackett 1975); a best-and-worst pick is a best of all, then a worst of the rest.
With b = 1 this is the model of the package ``choix``; learning b together with u is the idea of
Chen et al., "Pairwise ranking aggregation in a crowdsourced setting" (WSDM 2013).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
MAX_ROUNDS = 500
TOLERANCE = 1e-9
MAX_STEP = 2.0
"""Largest change of a utility or log-precision in one step."""
DRAWS = 256
"""Draws of the utilities over which precisions are averaged."""
CHUNK = 4096
"""Choices that are looked at together, which bounds the memory."""
NO_MAXIMUM = (
    "the likelihood of the utilities has no maximum: an item was always taken or never; give a "
    "finite utility_variance"
)


@dataclass(frozen=True)
class Choices:
    """N choices among items 0..n_items-1."""

    sets: Integers
    """(N, K) items of each shown set, the chosen one first; -1 fills short sets."""
    signs: Floats
    """(N,) +1 where the best was chosen, -1 where the worst."""
    annotators: Integers
    """(N,) who chose."""
    groups: Integers
    """(n_items,) which items may stand in one set: utilities compare within a group alone."""

    @classmethod
    def collect(
        cls,
        rows: Iterable[tuple[Sequence[int], int, int]],
        groups: Sequence[int] | Integers,
    ) -> Choices:
        """From (shown set with the chosen item first, +1 or -1, annotator) each."""
        listed = list(rows)
        if not listed:
            raise ValueError("there are no choices to learn from")
        width = max(len(shown) for shown, _, _ in listed)
        sets = np.full((len(listed), width), -1, dtype=np.int64)
        for row, (shown, _, _) in zip(sets, listed, strict=True):
            row[: len(shown)] = shown
        return cls(
            sets=sets,
            signs=np.array([sign for _, sign, _ in listed], dtype=float),
            annotators=np.array([annotator for _, _, annotator in listed], dtype=np.int64),
            groups=np.asarray(groups, dtype=np.int64),
        )


@dataclass(frozen=True)
class Fit:
    """Maximum a posteriori."""

    utilities: Floats
    """(n_items,), mean zero in each group."""
    log_precisions: Floats
    """(n_annotators,) log b: minus the log of the temperature."""
    standard_errors: Floats
    """(n_annotators,) of ``log_precisions``; 0 where they were fixed."""
    log_likelihood: float


def ranking_choices(ranking: Sequence[int], annotator: int = 0):
    """A full or partial ranking, best first, as choices of the best from what is left."""
    for start in range(len(ranking) - 1):
        yield ranking[start:], 1, annotator


def best_worst_choices(win: int, middle: Sequence[int], lose: int, annotator: int = 0):
    """One best-and-worst pick as its two choices."""
    yield (win, *middle, lose), 1, annotator
    yield (lose, *middle), -1, annotator


def fit(
    choices: Choices,
    utility_variance: float = 1.0,
    precision_variance: float = 0.0,
    n_annotators: int | None = None,
) -> Fit:
    """Utilities of highest posterior, given temperatures of highest marginal posterior.

    Args:
        utility_variance: of the normal prior of each utility; ``inf`` is maximum likelihood,
            which exists only where every item of a group was both taken and left.
        precision_variance: of the normal prior of each log b around 0; 0 fixes b at 1. Precisions
            maximise the posterior with the utilities integrated out: at the joint
            maximum the prior of the many utilities would push all of the scale into the few b.

    Raises:
        ValueError: there is no maximum, as for maximum likelihood when an item always wins.
    """
    count = n_annotators or int(choices.annotators.max()) + 1
    blocks = _Blocks(choices, 0.0 if np.isinf(utility_variance) else 1 / utility_variance)
    log_b, errors = np.zeros(count), np.zeros(count)
    if precision_variance:
        if np.isinf(utility_variance):
            raise ValueError("learning precisions needs a finite utility_variance")
        marginal = _Marginal(choices, utility_variance, 1 / precision_variance)
        log_b, errors = _fit_precisions(marginal, log_b)
    blocks.settle(np.exp(log_b))
    likelihood = float(blocks.log_likelihoods(blocks.utilities, np.exp(log_b)).sum())
    return Fit(blocks.utilities, log_b, errors, likelihood)


class _Blocks:
    """The utilities, with one Newton system for each group."""

    def __init__(self, choices: Choices, prior: float):
        self.choices, self.prior = choices, prior
        self.n_items = len(choices.groups)
        _, self.block = np.unique(choices.groups, return_inverse=True)
        self.local, self.width = _places(self.block)
        self.sizes = np.bincount(self.block)
        self.shown = choices.sets >= 0
        self.of_choice = self.block[choices.sets[:, 0]]
        self.utilities = np.zeros(self.n_items)

    def logits(self, utilities: Floats, b: Floats) -> Floats:
        """(N, K) s b u, minus infinity where nothing was shown."""
        scale = self.choices.signs * b[self.choices.annotators]
        return np.where(self.shown, scale[:, None] * utilities[self.choices.sets], -np.inf)

    def log_likelihoods(self, utilities: Floats, b: Floats) -> Floats:
        """(N,) log-probability of each choice."""
        logits = self.logits(utilities, b)
        return logits[:, 0] - np.logaddexp.reduce(logits, axis=1)

    def probabilities(self, b: Floats) -> Floats:
        """(N, K) of each shown item to be taken."""
        logits = self.logits(self.utilities, b)
        return np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])

    def settle(self, b: Floats) -> None:
        """Bring the utilities to their maximum under these precisions."""
        for _ in range(MAX_ROUNDS):
            if self.step(b) < TOLERANCE:
                return
        raise ValueError(NO_MAXIMUM)

    def step(self, b: Floats) -> float:
        """One damped Newton step of every block; the largest change."""
        gradient, hessian = self.derivatives(b)
        try:
            newton = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        except np.linalg.LinAlgError:
            raise ValueError(NO_MAXIMUM) from None
        change = newton[self.block, self.local]
        largest = np.zeros(len(self.sizes))
        np.maximum.at(largest, self.block, np.abs(change))
        change *= np.minimum(1, MAX_STEP / np.maximum(largest, MAX_STEP))[self.block]
        before = self.objective(self.utilities, b)
        for _ in range(30):
            tried = self.utilities + change
            worse = self.objective(tried, b) < before - 1e-12 * (1 + np.abs(before))
            if not worse.any():
                break
            change = np.where(worse[self.block], change / 2, change)
        moved = self._centred(self.utilities + change) - self.utilities
        self.utilities = self.utilities + moved
        return float(np.abs(moved).max())

    def derivatives(self, b: Floats) -> tuple[Floats, Floats]:
        """Gradient (blocks, n) and negative Hessian (blocks, n, n) of the objective."""
        sets, scale = self.choices.sets, self.choices.signs * b[self.choices.annotators]
        p = self.probabilities(b)
        slope = -p * scale[:, None]
        slope[:, 0] += scale
        width = self.width
        gradient = np.zeros((len(self.sizes), width))
        hessian = np.zeros((len(self.sizes), width, width))
        block, local = self.of_choice[:, None], np.where(self.shown, self.local[sets], 0)
        np.add.at(gradient, (block, local), np.where(self.shown, slope, 0))
        square = (scale**2)[:, None]
        np.add.at(hessian, (block, local, local), square * p)
        outer = square[:, :, None] * p[:, :, None] * p[:, None, :]
        np.add.at(hessian, (block[:, :, None], local[:, :, None], local[:, None, :]), -outer)
        gradient[self.block, self.local] -= self.prior * self.utilities
        # Utilities are free up to a constant: the ones pin it without moving anything else. Rows
        # past a block's size become the identity.
        real = np.arange(width) < self.sizes[:, None]
        hessian += (real[:, :, None] & real[:, None, :]) / self.sizes[:, None, None]
        hessian[:, np.arange(width), np.arange(width)] += np.where(real, self.prior, 1.0)
        return gradient, hessian

    def objective(self, utilities: Floats, b: Floats) -> Floats:
        """(blocks,) log-posterior."""
        total = np.zeros(len(self.sizes))
        np.add.at(total, self.of_choice, self.log_likelihoods(utilities, b))
        np.add.at(total, self.block, -self.prior / 2 * utilities**2)
        return total

    def _centred(self, utilities: Floats) -> Floats:
        means = np.bincount(self.block, utilities) / self.sizes
        return utilities - means[self.block]


def _fit_precisions(marginal: _Marginal, start: Floats) -> tuple[Floats, Floats]:
    """The log b of highest marginal posterior by Fisher scoring, and their standard errors."""
    x, (value, slope, information) = start, marginal(start)
    for _ in range(MAX_ROUNDS):
        move = np.linalg.solve(information, slope)
        move *= min(1.0, MAX_STEP / np.abs(move).max(initial=MAX_STEP))
        gain = float(slope @ move)
        if gain < 1e-5:
            return x, np.sqrt(np.diag(np.linalg.inv(information)))
        tried = marginal(x + move)
        while tried[0] < value + 1e-4 * gain and gain > 1e-12:
            move, gain = move / 2, gain / 2
            tried = marginal(x + move)
        x, (value, slope, information) = x + move, tried
    raise ValueError(f"the temperatures did not settle in {MAX_ROUNDS} rounds")


class _Marginal:
    """Log-posterior of log b with the utilities integrated out, and its slopes.

    Each group's utilities are averaged over the same ``DRAWS`` draws from their prior, so that the
    value is smooth in log b. (Laplace's approximation breaks down here: it lets one annotator take
    all of the scale and so explain their own choices.)
    """

    def __init__(self, choices: Choices, utility_variance: float, prior: float):
        self.choices, self.prior = choices, prior
        _, item_group = np.unique(choices.groups, return_inverse=True)
        local, width = _places(item_group)
        self.group = item_group[choices.sets[:, 0]]
        self.shown = choices.sets >= 0
        self.local = np.where(self.shown, local[choices.sets], 0)
        half = np.random.default_rng(0).normal(size=(width, DRAWS // 2))
        self.draws = np.sqrt(utility_variance) * np.concatenate([half, -half], axis=1)

    def __call__(self, log_b: Floats) -> tuple[float, Floats, Floats]:
        """Value, gradient (A,), and information (A, A) as the sum of the groups' squared slopes."""
        choices, b = self.choices, np.exp(log_b)
        scale = (choices.signs * b[choices.annotators])[:, None, None]
        groups = int(self.group.max()) + 1
        total = np.zeros((groups, self.draws.shape[1]))
        slopes = np.empty((len(self.group), self.draws.shape[1]))
        for start in range(0, len(self.group), CHUNK):
            rows = slice(start, start + CHUNK)
            logits = scale[rows] * self.draws[self.local[rows]]  # (n, K, draws)
            logits[~self.shown[rows]] = -1e30
            top = logits.max(1)
            powers = np.exp(logits - top[:, None])
            norm = powers.sum(1)
            np.add.at(total, self.group[rows], logits[:, 0] - top - np.log(norm))
            slopes[rows] = logits[:, 0] - (powers * logits).sum(1) / norm
        evidence = np.logaddexp.reduce(total, axis=1)
        posterior = np.exp(total - evidence[:, None])
        scores = np.zeros((groups, len(log_b)))
        weighted = (posterior[self.group] * slopes).sum(1)
        np.add.at(scores, (self.group, choices.annotators), weighted)
        value = evidence.sum() - groups * np.log(total.shape[1]) - self.prior / 2 * log_b @ log_b
        information = scores.T @ scores + self.prior * np.eye(len(log_b))
        return float(value), scores.sum(0) - self.prior * log_b, information


def _places(block: Integers) -> tuple[Integers, int]:
    """Each item's place within its block, and the size of the largest block."""
    order = np.argsort(block, kind="stable")
    sizes = np.bincount(block)
    places = np.empty(len(block), dtype=np.int64)
    places[order] = np.arange(len(block)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return places, int(sizes.max())
