"""Near-duplicates among texts: every pair above a threshold, found through shared word trigrams.

Two texts are near-duplicates when all but ``1 - threshold`` of the longer one's words stay as the fewest word edits
turn one into the other, the edit similarity that Lee et al. (2022, "Deduplicating Training Data Makes Language Models
Better") ask of near-duplicates, here on words; or when ``threshold`` of the word trigrams of one stand in the other
(containment; Broder, 1997, "On the resemblance and containment of documents"). The first takes ``NEAR_WORDS`` words,
the second ``CONTAINED_WORDS``: 8 and 13 are the shortest and longest n-grams by which GPT-3's overlap with benchmarks
was judged (Brown et al., 2020, appendix C). In shorter texts one edit changes too much.

``d`` edits leave at most ``d + 1`` runs of untouched words. From ``SMALLEST_THRESHOLD`` on, one of them has three
words or more, and an edit breaks at most three trigrams, so counting shared trigrams misses no pair. The counts are
products of sparse matrices, in pieces of bounded size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from matryoshka_st.errors import UserError

SMALLEST_THRESHOLD = 0.8
NEAR_WORDS = 8
CONTAINED_WORDS = 13
BATCH_TEXTS = 20_000
LARGEST_PRODUCT = 10_000_000
_N = 3
_HASH_BASE = np.uint64(0x9E3779B97F4A7C15)

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class _Encoded:
    """Texts as word ids, with the hashes of their distinct trigrams."""

    words: list[list[int]]
    lengths: Indices
    rows: Indices
    hashes: NDArray[np.uint64]
    distinct: Indices


def check_threshold(threshold: float) -> None:
    """Check that texts at least so near to each other have a trigram in common.

    Raises:
        UserError: If they need not have one, or the threshold is above 1.
    """
    if not SMALLEST_THRESHOLD <= threshold <= 1:
        raise UserError(
            f"near_threshold is {threshold:g}; give {SMALLEST_THRESHOLD} to 1, since texts less alike need not have "
            "three words in a row in common, by which they are found."
        )


class NearIndex:
    """Texts that others are compared with.

    Args:
        texts: As :func:`matryoshka_st.data.words.only_words` returns them; those below ``NEAR_WORDS`` words are near
            nothing.
        threshold: The share of words, or of trigrams, that near-duplicates have in common.

    Raises:
        UserError: If the threshold is below ``SMALLEST_THRESHOLD`` or above 1.
    """

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        check_threshold(threshold)
        self._threshold = threshold
        self._ids: dict[str, int] = {}
        self._own = self._encode(texts)
        self._known = np.unique(self._own.hashes)
        self._matrix = self._incidence(self._own).T.tocsr()
        self._texts_with = np.diff(self._matrix.indptr).astype(np.int64)

    def near(self, texts: Sequence[str]) -> tuple[Indices, Indices]:
        """The pairs of near-duplicates, equal texts among them.

        Args:
            texts: As for the index.

        Returns:
            The position in ``texts`` and that in the index, of each pair.
        """
        found = [self._near_batch(texts, start) for start in range(0, len(texts), BATCH_TEXTS)]
        left, right = zip(*found, strict=True) if found else ((), ())
        none = np.empty(0, np.int64)
        return np.concatenate([none, *left]), np.concatenate([none, *right])

    def _near_batch(self, texts: Sequence[str], start: int) -> tuple[Indices, Indices]:
        others = self._encode(texts[start : start + BATCH_TEXTS])
        found = [self._confirmed(others, *counts) for counts in self._shared(others)]
        left, right = zip(*found, strict=True)
        return np.concatenate(left) + start, np.concatenate(right)

    def _shared(self, others: _Encoded) -> Iterator[tuple[Indices, Indices, Indices]]:
        """The pairs with a trigram in common, and how many they share."""
        incidence = self._incidence(others)
        products = np.cumsum(incidence @ self._texts_with)
        cuts = np.unique(np.searchsorted(products, np.arange(0, max(products[-1], 1), LARGEST_PRODUCT)))
        for first, last in zip(cuts, [*cuts[1:], len(others.words)], strict=True):
            counts = (incidence[first:last] @ self._matrix).tocoo()
            yield counts.row.astype(np.int64) + first, counts.col.astype(np.int64), counts.data

    def _confirmed(self, others: _Encoded, left: Indices, right: Indices, shared: Indices) -> tuple[Indices, Indices]:
        lengths = others.lengths[left], self._own.lengths[right]
        distinct = np.maximum(others.distinct[left], self._own.distinct[right])
        longer, shorter = np.maximum(*lengths), np.minimum(*lengths)
        edits = np.floor((1 - self._threshold) * longer + 1e-9).astype(np.int64)
        near = (shorter >= CONTAINED_WORDS) & (shared >= self._threshold * (shorter - _N + 1))
        possible = (longer - shorter <= edits) & ~near
        possible &= shared >= distinct - _N * edits
        for pair in np.flatnonzero(possible):
            near[pair] = within_edits(others.words[left[pair]], self._own.words[right[pair]], int(edits[pair]))
        return left[near], right[near]

    def _encode(self, texts: Sequence[str]) -> _Encoded:
        ids = self._ids
        words = [[ids.setdefault(word, len(ids)) for word in text.split()] for text in texts]
        lengths = np.array([len(row) for row in words], np.int64)
        flat = np.fromiter((word for row in words for word in row), np.uint64, int(lengths.sum()))
        starts = np.cumsum(lengths) - lengths
        rows = np.repeat(np.arange(len(words)), lengths)
        whole = np.arange(len(flat)) + _N <= np.repeat(starts + lengths, lengths)
        hashes = np.zeros(len(flat), np.uint64)
        for offset in range(_N):
            hashes = hashes * _HASH_BASE + np.roll(flat, -offset) + np.uint64(1)
        rows, hashes = rows[whole], hashes[whole]
        order = np.lexsort((hashes, rows))
        rows, hashes = rows[order], hashes[order]
        first = np.ones(len(rows), bool)
        first[1:] = (rows[1:] != rows[:-1]) | (hashes[1:] != hashes[:-1])
        rows, hashes = rows[first], hashes[first]
        return _Encoded(words, lengths, rows, hashes, np.bincount(rows, minlength=len(words)))

    def _incidence(self, texts: _Encoded) -> csr_array:
        """Texts by trigrams of the index; texts too short for a near-duplicate have none."""
        columns = np.searchsorted(self._known, texts.hashes)
        columns[columns == len(self._known)] = 0
        kept = (self._known[columns] == texts.hashes) if len(self._known) else np.zeros(len(columns), bool)
        kept &= texts.lengths[texts.rows] >= NEAR_WORDS
        ones = np.ones(int(kept.sum()), np.int32)
        return csr_array((ones, (texts.rows[kept], columns[kept])), shape=(len(texts.words), len(self._known)))


def within_edits(left: Sequence[int], right: Sequence[int], limit: int) -> bool:
    """Whether at most ``limit`` insertions, deletions and substitutions turn one sequence into the other.

    >>> within_edits([1, 2, 3], [1, 4, 3, 5], 2), within_edits([1, 2, 3], [1, 4, 3, 5], 1)
    (True, False)
    """
    start, left_end, right_end = 0, len(left), len(right)
    while start < min(left_end, right_end) and left[start] == right[start]:
        start += 1
    while start < min(left_end, right_end) and left[left_end - 1] == right[right_end - 1]:
        left_end, right_end = left_end - 1, right_end - 1
    left, right = left[start:left_end], right[start:right_end]
    if abs(len(left) - len(right)) > limit:
        return False
    distances = list(range(len(right) + 1))
    for row, word in enumerate(left, start=1):
        previous, distances[0] = distances[0], row
        for column, other in enumerate(right, start=1):
            here = min(previous + (word != other), distances[column] + 1, distances[column - 1] + 1)
            previous, distances[column] = distances[column], here
        if min(distances) > limit:
            return False
    return distances[-1] <= limit
