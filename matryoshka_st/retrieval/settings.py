"""What an index is made of: dims, lengths of shortlists, metric, precision and kind of the shortlist; checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any, Literal, get_args

from matryoshka_st.errors import UserError, did_you_mean
from matryoshka_st.evaluation.precision import Precision, check_precision

Metric = Literal["cosine", "dot"]
IndexKind = Literal["flat", "hnsw"]


@dataclass(frozen=True)
class Settings:
    """A cascade: ``dims[0]`` finds ``shortlists[0]`` candidates, ``dims[1]`` keeps ``shortlists[1]`` of them, ...

    The last dim ranks the last shortlist. Build it with :meth:`of`; the constructor takes values already checked.

    Attributes:
        width: Width of the vectors that are indexed and of the queries.
        dims: Ascending numbers of leading coordinates.
        shortlists: Falling numbers of candidates, one fewer than dims.
        metric: ``cosine`` renormalises every prefix, ``dot`` takes vectors as they are.
        precision: How the first prefix is stored in RAM; ``binary`` compares signs by Hamming distance.
        index: ``flat`` looks at every vector, ``hnsw`` walks a graph.
    """

    width: int
    dims: tuple[int, ...]
    shortlists: tuple[int, ...]
    metric: Metric = "cosine"
    precision: Precision = "float32"
    index: IndexKind = "flat"

    @classmethod
    def of(
        cls,
        width: int,
        dims: Sequence[int],
        shortlists: Sequence[int],
        *,
        metric: str = "cosine",
        precision: str = "float32",
        index: str = "flat",
    ) -> Settings:
        """Check all values.

        Raises:
            UserError: If dims exceed the width or do not rise, lengths are below 1 or rise, the counts do not fit, or
                a name is unknown.

        >>> Settings.of(384, [64, 384], [200]).shortlists
        (200,)
        """
        checked = check_precision(precision)
        rising, lengths = check_dims(dims, width, checked), _check_lengths(shortlists)
        if len(lengths) != len(rising) - 1:
            raise UserError(
                f"There are {len(lengths)} shortlists for {len(rising)} dims; give one length per dim but the last, "
                "for example dims 64 128 384 with shortlists 400 100."
            )
        return cls(
            width, rising, lengths, _one_of("metric", metric, Metric), checked, _one_of("index", index, IndexKind)
        )

    def lengths(self, k: int, count: int, shortlists: Sequence[int] | None = None) -> tuple[int, ...]:
        """How many candidates each stage of one search keeps, none more than there are vectors.

        Args:
            k: Vectors wanted per query.
            count: Vectors in the index.
            shortlists: Other lengths than these.

        Raises:
            UserError: If the index is empty, or k or the lengths will not do.
        """
        if not count:
            raise UserError("The index is empty; add vectors before searching.")
        if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= count:
            raise UserError(f"k is {k!r}, but the index holds {count} vectors; use 1 to {count}.")
        chosen = self.shortlists
        if shortlists is not None:
            chosen = Settings.of(self.width, self.dims, shortlists, precision=self.precision).shortlists
        if k > min(chosen[-1], count):
            raise UserError(
                f"k is {k}, but the last shortlist keeps only {chosen[-1]}; ask for fewer or pass longer shortlists."
            )
        return tuple(min(length, count) for length in chosen)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; :meth:`from_dict` takes it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """The inverse of :meth:`as_dict`.

        Raises:
            UserError: If a value is not allowed.
            KeyError: If one is missing.
            TypeError: If one has the wrong type.
        """
        rest = {name: values[name] for name in ("metric", "precision", "index")}
        return cls.of(int(values["width"]), values["dims"], values["shortlists"], **rest)


def check_dims(dims: Sequence[int], width: int, precision: Precision) -> tuple[int, ...]:
    """Check that dims rise and that the vectors have them.

    The first two may be equal if the shortlist is stored in fewer bits than the vectors.

    Raises:
        UserError: If not.
    """
    whole = [_whole(dim, "dim") for dim in dims]
    if len(whole) < 2:
        raise UserError(f"dims is {list(dims)}; give at least two, for example 64 384.")
    for dim in whole:
        if not 1 <= dim <= width:
            raise UserError(f"The vectors have {width} dims, so {dim} is no prefix of them; use 1 to {width}.")
    for place, (small, large) in enumerate(pairwise(whole)):
        if small > large or (small == large and (place > 0 or precision == "float32")):
            raise UserError(f"dims is {whole}, but each has to be larger than the one before.")
    return tuple(whole)


def _check_lengths(shortlists: Sequence[int]) -> tuple[int, ...]:
    whole = [_whole(length, "length of a shortlist") for length in shortlists]
    if any(length < 1 for length in whole) or any(long < short for long, short in pairwise(whole)):
        raise UserError(f"shortlists is {whole}; lengths are 1 or more and fall, for example 400 100 20.")
    return tuple(whole)


def _whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserError(f"{value!r} is no {what}; give a whole number.")
    return int(value)


def _one_of(name: str, value: str, allowed: Any) -> Any:
    names = get_args(allowed)
    if value not in names:
        raise UserError(f"There is no {name} {value!r}{did_you_mean(value, names)}; use {' or '.join(names)}.")
    return value
