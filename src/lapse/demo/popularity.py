"""Which keys are read how often: a few very often, most of them rarely (Zipf's law)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate

__all__ = ["Popularity", "zipf"]


class Popularity:
    """Keys of several families, read as often as the family's share and Zipf's law say.

    Args:
        families: a share, and keys from the most popular on, of which the n-th is read 1/n as often
            as the first.
    """

    def __init__(self, families: Sequence[tuple[float, Sequence[str]]]) -> None:
        self.keys: list[str] = []
        weights: list[float] = []
        for share, keys in families:
            harmonic = [1 / rank for rank in range(1, len(keys) + 1)]
            total = sum(harmonic)
            self.keys += keys
            weights += [share * each / total for each in harmonic]
        self._cumulative = list(accumulate(weights))

    def draw(self, rng: random.Random, count: int) -> list[str]:
        """Keys to read."""
        return rng.choices(self.keys, cum_weights=self._cumulative, k=count)


def zipf(rng: random.Random, most: int) -> int:
    """A number from 1 to `most`, with a probability of about 1/number."""
    return int((most + 1) ** rng.random())
