"""Find the side that a user means.

``model[#revision][@dim][:precision][:variant]``: the model by its full name, the part behind the slash, or any part
that only one model has; without a dim the full width; without a precision float32; ``#published`` or the beginning of
a revision where one name has both or several.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matryoshka_st.errors import UserError, did_you_mean
from matryoshka_st.evaluation.precision import PRECISIONS
from matryoshka_st.evaluation.sides import Side

_QUERY = re.compile(r"(?P<model>[^#@:]+)(#(?P<revision>[^#@:]+))?(@(?P<dim>\d+))?(:(?P<extra>.+))?")
_MOST = 8


@dataclass(frozen=True)
class _Query:
    text: str
    model: str
    revision: str
    dim: int | None
    precision: str
    variant: str

    def fits(self, side: Side) -> bool:
        return (
            side.revision.startswith(self.revision)
            and side.dim == (self.dim or side.width)
            and (side.precision, side.variant) == (self.precision, self.variant)
        )


def find_side(text: str, sides: Sequence[Side]) -> Side:
    """The one side that a text names.

    Args:
        text: For example ``ada-002``, ``text-embedding-3-large@256`` or ``local/model@64:binary``.
        sides: All there are.

    Raises:
        UserError: If the text names no side, or more than one.
    """
    query = _parse(text)
    model = _find_model(query.model, sorted({side.model for side in sides}))
    of_model = [side for side in sides if side.model == model]
    found = [side for side in of_model if query.fits(side)]
    if not found:
        have = _some(side.full_label if query.revision else side.label for side in of_model)
        raise UserError(f"There are no scores for {text!r}; of {model} there are {have}.")
    if len(found) > 1:
        have = _some(side.full_label for side in found)
        raise UserError(f"{text!r} can be any of {have}; name one of them.")
    return found[0]


def _parse(text: str) -> _Query:
    found = _QUERY.fullmatch(text.strip())
    if found is None:
        raise UserError(f"{text!r} is not model@dim; write for example ada-002, nomic-embed-text-v1.5@64.")
    parts = (found["extra"] or "").split(":")
    precisions = [part for part in parts if part in PRECISIONS]
    if len(precisions) > 1:
        raise UserError(f"{text!r} names {len(precisions)} precisions; name one of {', '.join(PRECISIONS)}.")
    return _Query(
        text=text,
        model=found["model"],
        revision=found["revision"] or "",
        dim=int(found["dim"]) if found["dim"] else None,
        precision=precisions[0] if precisions else "float32",
        variant=":".join(part for part in parts if part not in PRECISIONS),
    )


def _find_model(name: str, models: Sequence[str]) -> str:
    wanted = name.lower()
    tests = (
        lambda model: model == wanted,
        lambda model: model.split("/")[-1] == wanted,
        lambda model: wanted in model,
    )
    for test in tests:
        found = [model for model in models if test(model.lower())]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{name!r} can be any of {_some(found)}; write more of the name.")
    hint = did_you_mean(name, [*models, *_endings(models)])
    raise UserError(f"There is no model {name!r}{hint or ';'} --list shows those there are, --results adds your runs.")


def _endings(models: Sequence[str]) -> list[str]:
    """The ends of names, from the part behind the slash on, that only one model has: ``ada-002``."""
    words = [model.split("/")[-1].split("-") for model in models]
    endings = Counter("-".join(word[i:]) for word in words for i in range(len(word)))
    return [ending for ending, count in endings.items() if count == 1]


def _some(names: Iterable[str]) -> str:
    listed = list(dict.fromkeys(names))
    return ", ".join(listed[:_MOST]) + (f" and {len(listed) - _MOST} more" if len(listed) > _MOST else "")
