"""Which rows of a training set hold texts that tasks are scored on, word for word or nearly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from matryoshka_st.data.near import Indices, NearIndex
from matryoshka_st.data.words import only_words

if TYPE_CHECKING:
    from datasets import Dataset

SHORTEST_WORDS = 4
"""Texts with fewer words ("yes", "i love you") are equal by chance and not counted, on either side."""


class Match(NamedTuple):
    """A training text and the evaluation text it matches, both as only their words."""

    text: str
    evaluated: str
    tasks: tuple[str, ...]
    exact: bool


@dataclass(frozen=True)
class Overlap:
    """What one training set shares with the tasks; the arrays have a row per training row and a column per task.

    Args:
        exact: Rows with a text that is one of the task's.
        near: Other rows with a near-duplicate of one.
        both: Rows, exact or near, whose anchor and positive both match texts of the task.
        hit: The evaluation texts that were matched, by their number in the index.
        matches: Every pair of texts that match, the near ones first.
    """

    exact: NDArray[np.bool_]
    near: NDArray[np.bool_]
    both: NDArray[np.bool_]
    hit: Indices
    matches: list[Match]

    @property
    def clean(self) -> NDArray[np.bool_]:
        """The rows without any match."""
        return np.asarray(~(self.exact | self.near).any(axis=1))


class OverlapIndex:
    """The evaluation texts of some tasks, ready for training sets to be compared with.

    Args:
        texts: The texts of each task, as they are.
        near_threshold: As for :class:`matryoshka_st.data.near.NearIndex`.

    Raises:
        UserError: If the threshold is out of range.
    """

    def __init__(self, texts: Mapping[str, Iterable[str]], near_threshold: float) -> None:
        self.tasks = tuple(texts)
        self._ids: dict[str, int] = {}
        self.too_short: list[int] = []
        numbers, columns = [], []
        for column, task in enumerate(self.tasks):
            distinct = set(map(only_words, texts[task])) - {""}
            long_enough = sorted(filter(_counts, distinct))
            self.too_short.append(len(distinct) - len(long_enough))
            numbers += [self._ids.setdefault(text, len(self._ids)) for text in long_enough]
            columns += [column] * len(long_enough)
        self._texts = list(self._ids)
        self._task_of = csr_array(
            (np.ones(len(numbers), np.int32), (numbers, columns)), shape=(len(self._texts), len(self.tasks))
        )
        self._near = NearIndex(self._texts, near_threshold)

    def texts_of_tasks(self, numbers: Indices | None = None) -> list[int]:
        """How many texts each task has, all or those with these numbers."""
        members = self._task_of if numbers is None else self._task_of[numbers]
        return [int(count) for count in members.sum(axis=0)]

    def compare(self, dataset: Dataset) -> Overlap:
        """Find the rows of a training set with a text of the tasks, in any column.

        Args:
            dataset: A dataset of :func:`matryoshka_st.data.load_pairs`.
        """
        ids: dict[str, int] = {}
        texts_of_rows = {
            name: np.array([_number(only_words(text), ids) for text in dataset[name][:]], np.int64)
            for name in dataset.column_names
        }
        texts = list(ids)
        own = np.array([self._ids.get(text, -1) for text in texts], np.int64)
        equal = np.flatnonzero(own >= 0)
        left, right = self._near.near(texts)
        other = own[left] != right
        left, right = left[other], right[other]

        exact_texts = self._tasks_of_texts(equal, own[equal], len(texts))
        near_texts = self._tasks_of_texts(left, right, len(texts))
        either = exact_texts | near_texts
        exact = np.any([exact_texts[numbers] for numbers in texts_of_rows.values()], axis=0)
        near = np.any([near_texts[numbers] for numbers in texts_of_rows.values()], axis=0)
        return Overlap(
            exact=exact,
            near=near & ~exact,
            both=either[texts_of_rows["anchor"]] & either[texts_of_rows["positive"]],
            hit=np.union1d(own[equal], right),
            matches=[
                *self._matches(texts, left, right, exact=False),
                *self._matches(texts, equal, own[equal], exact=True),
            ],
        )

    def _tasks_of_texts(self, left: Indices, right: Indices, texts: int) -> NDArray[np.bool_]:
        """Which tasks each text matches; one more row, without a task, is that of texts too short to count."""
        pairs = csr_array((np.ones(len(left), np.int32), (left, right)), shape=(texts + 1, len(self._texts)))
        matched: NDArray[np.bool_] = (pairs @ self._task_of).toarray() > 0
        return matched

    def _matches(self, texts: Sequence[str], left: Indices, right: Indices, *, exact: bool) -> list[Match]:
        found = []
        for text, evaluated in zip(left, right, strict=True):
            columns = self._task_of.indices[self._task_of.indptr[evaluated] : self._task_of.indptr[evaluated + 1]]
            tasks = tuple(self.tasks[column] for column in columns)
            found.append(Match(texts[text], self._texts[evaluated], tasks, exact))
        return found


def _counts(text: str) -> bool:
    return text.count(" ") >= SHORTEST_WORDS - 1


def _number(text: str, ids: dict[str, int]) -> int:
    return ids.setdefault(text, len(ids)) if _counts(text) else -1
