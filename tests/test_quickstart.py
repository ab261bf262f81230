"""The first run, for real: train, evaluate before and after, report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.quick_report import write_quick_report
from matryoshka_st.evaluation.significance import Difference, paired_difference
from matryoshka_st.quickstart import quickstart
from matryoshka_st.verify import verify_model


@pytest.mark.slow
def test_the_quickstart_beats_both_baselines_where_it_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curves = quickstart(tmp_path / "run")
    per_query = {name: {score.dim: score.per_query for score in scores} for name, scores in curves.items()}
    for dim in (64, 32):
        for baseline in ("untrained", "rotated"):
            assert paired_difference(per_query["trained"][dim], per_query[baseline][dim]).is_gain
    assert len(per_query["trained"][32]) == 1200
    assert verify_model(tmp_path / "run" / "model").ok
    assert len(list((tmp_path / "run" / "results").rglob("HeldOutDocstrings.json"))) >= 18
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{100 * curves['trained'][0].score:.2f}" in page
    assert (tmp_path / "run" / "report.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    code = printed[printed.index("    from sentence_transformers") :].replace("\n    ", "\n").strip()
    assert code.count("\n") == 2
    exec(code, {})  # noqa: S102
    assert "(1, 64)" in capsys.readouterr().out
    model = SentenceTransformer(str(tmp_path / "run" / "model"), device="cpu")
    assert model.max_seq_length == 256
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["verdict"].startswith("VERDICT: WIN")


def test_the_report_is_one_page_that_asks_for_nothing(tmp_path: Path) -> None:
    curves = {"untrained": {64: 0.5, 32: 0.4}, "trained <b>": {64: 0.6, 32: 0.55}}
    gains = {"untrained": {64: Difference(0.1, 0.08, 0.12), 32: Difference(0.15, 0.1, 0.2)}}
    write_quick_report(tmp_path, curves, gains, title="A & B")
    page = (tmp_path / "report.html").read_text()
    assert "<?xml" not in page and "<svg" in page and "A &amp; B" in page and "trained &lt;b&gt;" in page
    assert "+15.0 [10.0, 20.0]" in page
    assert page.index(">64</td>") < page.index(">32</td>")
    assert "trained &lt;b&gt;, 32 dims: 55.00, 91.7 % of full width" in page
    assert not re.search(r"""(src|href)="(?!#|data:,)|url\((?!#)""", page)
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "report.svg").read_text()


def test_too_few_queries_to_measure_on_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="test_queries is 3; give 10 or more"):
        quickstart(tmp_path / "run", test_queries=3)
