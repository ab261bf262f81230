"""Where the project's own recipes are: inside an installed package, or in a checkout's ``train_scripts``."""

from __future__ import annotations

from pathlib import Path

from matryoshka_st.errors import UserError

FOLDERS = (Path(__file__).parent / "recipes", Path(__file__).parents[1] / "train_scripts" / "recipes")


def recipe_path(name: str) -> Path:
    """The file of a recipe, by its name without ``.yaml``.

    Raises:
        UserError: If there is no such recipe, naming those that there are.
    """
    found = {path.stem: path for folder in reversed(FOLDERS) for path in sorted(folder.glob("*.yaml"))}
    if name not in found:
        raise UserError(f"There is no recipe {name!r}; use one of {', '.join(sorted(found))}.")
    return found[name]
