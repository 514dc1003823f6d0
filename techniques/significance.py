"""Is one run better than another, or is it luck? The arithmetic of techniques/sweep.py, without scipy.

Two runs that differ only in their seed differ in val loss: config/shakespeare_char.py ends between 1.519 and
1.529. So settings are compared over several seeds, and in pairs: the same seed on both sides means the same
initial weights where shapes agree and the same batches, and what both owe to these cancels.

    interval        fixed number of seeds: Student's t interval (Student, 1908)
    anytime         as many seeds as it takes: looking after each seed and stopping once the interval leaves
                    out 0 makes Student's t give 5 false alarms in 20 races of equals, not 1. This interval
                    holds for all looks together (Lai, 1976; Wang and Ramdas, 2023, arXiv:2310.03722).

For `anytime`, suppose a gain of g standard deviations, g spread as N(0, EFFECT^2). The likelihood of the n
differences, divided by that without a gain, is, with Student's t and a = 1 + n EFFECT^2,

    e = a^(-1/2) ((1 + t^2 / (n - 1)) / (1 + t^2 / (a (n - 1))))^(n/2)

(Goenen et al., 2005). If there is no gain, its mean is 1, and it ever reaches 1 / alpha with probability
alpha at most (Ville, 1939): however often one looks, for any standard deviation. The interval holds all mean
differences that would not have been refused so.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

EFFECT = 2.0  # gains that are looked for, in standard deviations of a pair: 0.02 in nats where that is 0.01


def t_probability(t: float, freedom: int) -> float:
    """P(-t < T < t) of Student's t, whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine2, odd = math.cos(angle) ** 2, freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(freedom // 2):
        total += term
        term *= cosine2 * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def t_quantile(level: float, freedom: int) -> float:
    """The t for which P(-t < T < t) = level: 2.776 for 0.95 and 4 degrees of freedom. By bisection."""
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, freedom) < level else (low, middle)
    return high


def interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's t interval for the mean of differences, one for each seed: (lowest, highest)."""
    n = len(differences)
    if n < 2:
        return -math.inf, math.inf
    radius = t_quantile(level, n - 1) * np.std(differences, ddof=1) / math.sqrt(n)
    return float(np.mean(differences) - radius), float(np.mean(differences) + radius)


def anytime(differences: Sequence[float], alpha: float) -> tuple[float, float]:
    """The interval for the mean of differences that may be looked at after each seed: (lowest, highest).

    It is wrong at any look with probability alpha at most. It is infinite while differences are few: below
    5 with alpha 0.005.
    """
    n = len(differences)
    if n < 2:
        return -math.inf, math.inf
    a = 1 + n * EFFECT**2
    needed = (math.sqrt(a) / alpha) ** (2 / n)  # e < 1 / alpha, solved for t
    if needed >= a:
        return -math.inf, math.inf
    t = math.sqrt((n - 1) * (needed - 1) / (1 - needed / a))
    radius = t * np.std(differences, ddof=1) / math.sqrt(n)
    return float(np.mean(differences) - radius), float(np.mean(differences) + radius)


def until_decided(differences_of: Callable[[int], list[float]], most: int, alpha: float) -> list[float]:
    """Collect differences, one for each seed, until `anytime` leaves out 0 or there are `most` of them.

    differences_of(n) returns the next ones, where n are there; none at all, or two seeds or more that do not
    differ by a bit, end it, too.
    """
    found: list[float] = []
    while len(found) < most:
        new = differences_of(len(found))
        found += new
        low, high = anytime(found, alpha)
        identical = len(found) > 1 and not any(found)
        if low > 0 or high < 0 or identical or not new:
            break
    return found
