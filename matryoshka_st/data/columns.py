"""Which column plays which part. Sentence-transformers goes by column order, so the order is never guessed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from matryoshka_st.data.rows import Rows
from matryoshka_st.errors import UserError, did_you_mean

ALIASES = {
    "anchor": ("anchor", "query", "question", "sentence1", "premise"),
    "positive": ("positive", "pos", "answer", "passage", "document", "sentence2", "hypothesis"),
}
NEGATIVE = re.compile(r"(negative|neg)(_?\d+)?")
LABELS = ("label", "labels", "score", "scores")


def negative_names(count: int) -> list[str]:
    """The names of the negative columns: ``negative`` for one, ``negative_1`` to ``negative_n`` for more.

    >>> negative_names(1), negative_names(2)
    (['negative'], ['negative_1', 'negative_2'])
    """
    return ["negative"] if count == 1 else [f"negative_{number}" for number in range(1, count + 1)]


def name_columns(rows: Rows, column_order: Sequence[str] | None = None) -> Rows:
    """Select the text columns and rename them to anchor, positive and negatives.

    Args:
        rows: Rows with the columns they were read with.
        column_order: The columns to use, anchor first; default: all, known by their names.

    Raises:
        UserError: If a column is unknown, missing, named twice, a label, or out of order.
    """
    order = _known_order(rows) if column_order is None else _given_order(rows, column_order)
    return rows.select_columns(dict(zip(order, ["anchor", "positive", *negative_names(len(order) - 2)], strict=True)))


def role_of(column: str) -> str | None:
    """The part a column plays by its name: ``anchor``, ``positive``, ``negative`` or none.

    >>> role_of("question"), role_of("neg_3"), role_of("title")
    ('anchor', 'negative', None)
    """
    name = column.lower()
    if NEGATIVE.fullmatch(name):
        return "negative"
    return next((role for role, aliases in ALIASES.items() if name in aliases), None)


def _given_order(rows: Rows, order: Sequence[str]) -> list[str]:
    for name in order:
        if name not in rows.columns:
            raise UserError(
                f"column_order names {name!r}, but {rows.source} has the columns {_listed(rows.columns)}"
                f"{did_you_mean(name, rows.columns)}."
            )
    if isinstance(order, str) or len(order) < 2 or len(set(order)) < len(order):
        raise UserError(
            f"column_order is {_listed(order)}; name two or more different columns: anchor, positive, then negatives."
        )
    return list(order)


def _known_order(rows: Rows) -> list[str]:
    columns = rows.columns
    found = f"{rows.source} has the columns {_listed(columns)}"
    labels = [column for column in columns if column.lower() in LABELS]
    if len(columns) - len(labels) < 2:
        raise UserError(f"{found}; contrastive training needs at least two text columns, anchor and positive.")
    if labels:
        raise UserError(
            f"{found}, and {labels[0]!r} would be read as a label, which contrastive pairs do not have; keep only the "
            f"rows that match, then select the text columns with {_remedy(columns)}."
        )
    unknown = [column for column in columns if role_of(column) is None]
    if unknown:
        raise UserError(
            f"{found}, of which {_listed(unknown)} cannot be told to be anchor, positive or negative; select the text "
            f"columns, anchor first, for example with {_remedy(columns)}."
        )
    for role, aliases in ALIASES.items():
        same = _of_role(columns, role)
        if not same:
            raise UserError(
                f"{found} but no {role}; call one {role} ({', '.join(aliases[1:])} will do too), or select the "
                "columns, anchor first, with --column_order."
            )
        if len(same) > 1:
            raise UserError(f"{found}, and {_listed(same)} could each be the {role}; choose with {_remedy(columns)}.")
    needed = [*_of_role(columns, "anchor"), *_of_role(columns, "positive"), *_of_role(columns, "negative")]
    if columns != needed:
        raise UserError(
            f"{found} in this order, but sentence-transformers reads columns by position and needs {_listed(needed)}; "
            f"reorder them, or use {_remedy(columns)}."
        )
    return columns


def _of_role(columns: Sequence[str], role: str | None) -> list[str]:
    return [column for column in columns if role_of(column) == role]


def _remedy(columns: Sequence[str]) -> str:
    texts = [column for column in columns if column.lower() not in LABELS]
    anchor = (_of_role(texts, "anchor") or _of_role(texts, None) or texts)[0]
    others = [column for column in texts if column != anchor]
    positive = (_of_role(others, "positive") or _of_role(others, None) or others)[0]
    order = [anchor, positive, *(column for column in _of_role(others, "negative") if column != positive)]
    return f"--column_order {' '.join(order)} (column_order={order})"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
