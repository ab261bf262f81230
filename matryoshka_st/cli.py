"""The ``matryoshka-st`` command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from matryoshka_st.errors import UserError

app = typer.Typer(
    name="matryoshka-st",
    help="Sentence embeddings that can be cut to any length: train them, prove what each length is worth, ship them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_UsageError: Any = typer.BadParameter.__base__  # typer names no more of the click inside it
QUICKSTART = Path("quickstart")
PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@contextmanager
def exit_with_one_sentence() -> Iterator[None]:
    """Turn bad input into one sentence on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None


def main() -> None:
    """Entry point of the console script."""
    with exit_with_one_sentence():
        raise SystemExit(_run())


def _run() -> int | None:
    """The exit code of the command that was typed, with typer's own errors as one sentence."""
    try:
        code: int | None = app(standalone_mode=False)
    except typer.Abort:
        return 1
    except _UsageError as error:
        if len(sys.argv) == 1:
            sys.stderr.write(f"{error.format_message()}\n")
            return 2
        message = error.format_message().rstrip(".").replace(". Did you", "; did you")
        raise UserError(f"{message}; see --help.") from error
    return code


@app.command()
def quickstart(
    output_dir: Annotated[
        Path, typer.Option(help="Folder for model, results, report.html and report.png.")
    ] = QUICKSTART,
    train_rows: Annotated[int, typer.Option(help="Docstring pairs to train on.")] = 2560,
    test_queries: Annotated[int, typer.Option(help="Held-out queries to score on.")] = 1200,
) -> None:
    """Fine-tune the bundled MiniLM on docstrings of the installed packages and score it at every dim, in minutes."""
    from matryoshka_st.quickstart import quickstart as run
    from matryoshka_st.training.run import quiet_logging

    quiet_logging()
    run(output_dir, train_rows=train_rows, test_queries=test_queries)


@app.command(context_settings=PASS_THROUGH)
def train(context: typer.Context) -> None:
    """Fine-tune a model; the same as train_scripts/finetune.py (train --help lists every flag)."""
    from matryoshka_st.training.run import main as run

    run(context.args, prog="matryoshka-st train")


@app.command(context_settings=PASS_THROUGH)
def check(context: typer.Context) -> None:
    """Check a recipe without training: model, data, dims, one step; with --against its overlap with mteb tasks."""
    from matryoshka_st import decontaminate
    from matryoshka_st.training.run import main as run

    if decontaminate.is_asked_for(context.args):
        decontaminate.main(context.args, prog="matryoshka-st check")
        return
    run([*context.args, "--dry_run"], prog="matryoshka-st check")


@app.command("eval", context_settings=PASS_THROUGH)
def evaluate(context: typer.Context) -> None:
    """Score every dim of a model on real mteb tasks, encoding each text once (eval --help lists the flags)."""
    from matryoshka_st.evaluation.command import main as run
    from matryoshka_st.training.run import quiet_logging

    quiet_logging()
    run(context.args, prog="matryoshka-st eval")


@app.command(context_settings=PASS_THROUGH)
def compare(context: typer.Context) -> None:
    """Put two models side by side, our runs or published ones, on the tasks they share (compare --help)."""
    from matryoshka_st.evaluation.compare_command import main as run

    run(context.args, prog="matryoshka-st compare")


@app.command(context_settings=PASS_THROUGH)
def report(context: typer.Context) -> None:
    """Turn results of eval into one HTML page with figures and tables (report --help lists the flags)."""
    from matryoshka_st.evaluation.report.command import main as run

    run(context.args, prog="matryoshka-st report")


@app.command(context_settings=PASS_THROUGH)
def search(context: typer.Context) -> None:
    """Index a folder of texts, then query it: few dims find candidates, all dims rank them (search --help)."""
    from matryoshka_st.retrieval.search_command import main as run
    from matryoshka_st.training.run import quiet_logging

    quiet_logging()
    run(context.args, prog="matryoshka-st search")


@app.command()
def rotate(
    model: Annotated[str, typer.Argument(help="Hub id, folder, or 'bundled'.")],
    texts: Annotated[
        list[str],
        typer.Option(help="Texts to fit on: pairs (hub id, file, 'docstrings') or a .txt, one a line; repeatable."),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the rotated model.")],
    max_texts: Annotated[int, typer.Option(min=1, help="Fit on at most so many texts of each.")] = 5000,
    steps: Annotated[
        int, typer.Option(help="Learn the rotation so long, 600 is usual; 0: singular vectors alone.")
    ] = 0,
    contrast: Annotated[
        float, typer.Option(min=0.0, help="With --steps: weight of keeping the pairs together, 1 is usual; 0: none.")
    ] = 0.0,
    like: Annotated[
        list[str] | None,
        typer.Option(help="With --steps: an example of what you will embed; texts near it count more. Repeatable."),
    ] = None,
    retrieval: Annotated[
        bool,
        typer.Option(
            "--retrieval",
            help="Rotate what encode_query and encode_document give, and leave encode as it is: few dims then suit "
            "what you retrieve there, and what you classify or compare here.",
        ),
    ] = False,
) -> None:
    """Make a model cuttable without training: full width unchanged, prefixes better."""
    from matryoshka_st.basis import check_learning
    from matryoshka_st.rotation import rotate as run
    from matryoshka_st.training.per_source import rotation_pairs, rotation_texts

    check_learning(steps, contrast, told=bool(contrast or like))
    drawn, pairs = rotation_pairs(texts, [max_texts]) if contrast else (rotation_texts(texts, [max_texts]), [])
    folder = run(
        model,
        drawn,
        output,
        steps=steps,
        pairs=pairs,
        contrast=contrast,
        like=like or [],
        retrieval=retrieval,
        progress=True,
    )
    typer.echo(f"Rotated model: {folder}")


@app.command()
def verify(path: Annotated[Path, typer.Argument(help="Folder of a saved model.")]) -> None:
    """Reload a saved model with plain sentence-transformers and check what it promises; exit code 1 if one fails."""
    from matryoshka_st.verify import verify_model

    report = verify_model(path)
    for item in report.checks:
        typer.echo(f"{'ok  ' if item.ok else 'FAIL'} {item.name}: {item.detail}")
    if not report.ok:
        raise SystemExit(1)
