from __future__ import annotations

import csv
import io

from matryoshka_st.evaluation.report.board import board
from matryoshka_st.evaluation.report.summary import (
    comparison_table,
    front_table,
    incomplete_in_words,
    task_table,
    tasks_in_words,
)
from matryoshka_st.evaluation.report.tables import (
    Cell,
    Column,
    Table,
    hundredths,
    mark_best,
    table_csv,
    to_html,
    to_markdown,
)

from .report_runs import make_run, many_runs

SMALL = Table(
    [Column("model", is_number=False), Column("a|b", note='the "score"')],
    [[Cell("<x>|y"), Cell("50.00", 0.5, is_best=True)], [Cell("z"), hundredths(None, note="not scored on T")]],
    falling=1,
)


def test_markdown() -> None:
    assert to_markdown(SMALL) == "| model | a\\|b |\n| --- | ---: |\n| <x>\\|y | **50.00** |\n| z | - |\n"


def test_csv_leaves_the_missing_empty() -> None:
    assert list(csv.reader(io.StringIO(table_csv(SMALL)))) == [["model", "a|b"], ["<x>|y", "50.00"], ["z", ""]]


def test_html_is_escaped_and_carries_numbers_to_sort_by() -> None:
    html = to_html(SMALL, "A & B")
    assert 'aria-label="A &amp; B"' in html
    assert '<th scope="col" class="number" title="the &quot;score&quot;" aria-sort="descending">a|b</th>' in html
    assert "<td>&lt;x&gt;|y</td>" in html
    assert '<td class="number" data-value="0.5"><strong>50.00</strong></td>' in html
    assert '<td class="number" title="not scored on T">-</td>' in html


def test_the_best_is_marked_and_what_looks_equal_to_it() -> None:
    rows = [[hundredths(score)] for score in (0.50004, 0.50001, 0.49, None)]
    assert [row[0].is_best for row in mark_best(rows, [0])] == [True, True, False, False]
    assert not mark_best([[hundredths(None)]], [0])[0][0].is_best


def test_the_comparison_holds_types_mean_and_share_best_first() -> None:
    runs = [
        make_run(0.8, task="STS12"),
        make_run(0.6, task="SciFact"),
        make_run(0.6, dim=64, task="STS12"),
        make_run(0.5, dim=64, task="SciFact"),
        make_run(0.99, dim=32, task="STS12"),
    ]
    table = comparison_table(board(runs))
    assert [column.name for column in table.columns] == [
        "model", "dims", "precision", "bytes", "Retrieval", "STS", "Mean", "% of full",
    ]  # fmt: skip
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["small", "384", "float32", "1536", "60.00", "80.00", "70.00", "100.0"],
        ["small", "64", "float32", "256", "50.00", "60.00", "55.00", "78.6"],
        ["small", "32", "float32", "128", "-", "99.00", "-", "-"],
    ]
    assert table.columns[table.falling or 0].name == "Mean"
    assert table.rows[2][6].note == "not scored on SciFact"
    assert [cell.is_best for cell in table.rows[0]] == [False] * 4 + [True, False, True, False]
    assert table.rows[2][5].is_best


def test_the_other_tables() -> None:
    scored = board(many_runs())
    tasks = task_table(scored)
    assert [column.name for column in tasks.columns[4:]] == ["NFCorpus", "STS12", "STSBenchmark", "SciFact"]
    assert [row[:4] for row in tasks.rows] == [row[:4] for row in comparison_table(scored).rows]
    front = front_table(scored, scored.overall)
    sizes, scores = ([row[i].value or 0.0 for row in front.rows] for i in (3, 4))
    assert sizes == sorted(sizes) and scores == sorted(scores)


def test_words() -> None:
    runs = [make_run(task="STS12"), make_run(task="SciFact"), make_run(dim=64, task="SciFact", precision="int8")]
    scored = board(runs)
    assert tasks_in_words(scored) == ["Retrieval: SciFact (ndcg_at_10)", "STS: STS12 (cosine_spearman)"]
    assert incomplete_in_words(scored) == ["small, 64 dims, int8: no STS12"]
    assert tasks_in_words(board(runs[:1])) == ["STS: STS12 (cosine_spearman)"]
