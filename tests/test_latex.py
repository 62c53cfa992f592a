"""The tables for papers: what is in them, and that LaTeX sets them within the page."""

import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from test_experiments_report import carry_out, run

from sb3_pg_ext.experiments.comparison.analysis import Comparison
from sb3_pg_ext.experiments.comparison.latex import escape, tables
from sb3_pg_ext.experiments.results import Reference
from sb3_pg_ext.experiments.run_spec import Environment
from sb3_pg_ext.experiments.store import Store
from sb3_pg_ext.experiments.summary import p_value_text, summarise

LONG = "reinforce:baseline=mean,returns=trajectory,gae_lambda=0.95"
ODD = "a_b & 50% $x^2$ {~} \\#1 \"q\" 'r' ``s'' <t|u> --v α λ Σ ≥ é … 中 \x07"
ENV_IDS = ("CartPole-v1", "ale_py:ALE/Break_out-v5")
DOCUMENT = r"""\documentclass{article}
\usepackage{array, booktabs, graphicx}
\begin{document}
%s
\end{document}
"""


def make_comparison(folder, labels, n_seeds=4):
    with Store(folder / "study.sqlite", create=True) as store:
        runs = [
            replace(
                run(label, k, policy_kwargs={"net_arch": [64, 64]}, a_setting=label), environment=Environment(env_id)
            )
            for label in labels
            for env_id in ENV_IDS
            for k in range(n_seeds)
        ]
        store.declare(runs, "sb3-pg compare study.yml")
        for number, spec in enumerate(runs):
            height = -1e6 + 123_456.0 * number
            carry_out(store, spec, [-1e6, height, height], "failed" if spec.replicate == 3 else "finished")
        records = store.records()
    return Comparison(summarise(records), {env_id: Reference(-1e6, 1e6) for env_id in ENV_IDS})


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return make_comparison(tmp_path_factory.mktemp("latex"), ["ppo", LONG, ODD])


@pytest.mark.parametrize(
    ("text", "set_"),
    [
        ("a_b & 50% #1", r"a\_b \& 50\% \#1"),
        ("$x^2$ {~} \\", r"\$x\textasciicircum{}2\$ \{\textasciitilde{}\} \textbackslash{}"),
        ('<|> "', r"\textless{}\textbar{}\textgreater{} \symbol{34}"),
        ("a--b ``c''", "a-{}-b `{}`c'{}'"),
        ("1–2 · …", r"1\textendash{}2 \textperiodcentered{} \ldots{}"),
        ("α λ Ω Λ ς", r"$\alpha$ $\lambda$ $\Omega$ $\Lambda$ [U+03C2]"),
        ("é ≥ 中 \x07", r"é $\geq$ [U+4E2D] [U+0007]"),
        ("two\n  lines", "two lines"),
    ],
)
def test_every_character_is_set_as_it_is(text, set_):
    assert escape(text) == set_


def test_short_labels_are_left_alone_and_long_ones_are_broken_between_their_parts(comparison):
    text = tables(comparison)["results"]
    assert re.search(r"^ppo \\dag{} & ", text, re.M)
    assert (
        r"\mbox{reinforce:}\allowbreak{}\mbox{baseline=}\penalty100{}\mbox{mean,}\allowbreak{}\mbox{returns=}" in text
    )


def test_every_row_has_as_many_cells_as_there_are_columns(comparison):
    for name, width in (("results", 5), ("pairs", 5), ("settings", 5), ("aggregates", 5)):
        text = tables(comparison)[name]
        rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert len(rows) > 3
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {width - 1}


def test_settings_that_are_the_same_everywhere_are_said_once(comparison):
    rows = [line for line in tables(comparison)["settings"].splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + 3
    assert rows[1].startswith("ppo & all & 1,000 & 1 (dummy) & ")


def test_a_table_that_is_longer_than_a_page_is_cut_under_the_name_of_its_block(tmp_path):
    text = tables(make_comparison(tmp_path, [f"label{n}" for n in range(10)], n_seeds=1))["pairs"]
    pages = text.split(r"\end{table}")[:-1]
    assert len(pages) == 3  # 2 environments of 45 pairs each
    assert sum(page.count("label") // 2 for page in pages) == 90
    for page in pages:
        assert page.count("label") // 2 <= 36
        head, first, *_ = page.split(r"\midrule")[1].strip().splitlines()
        assert r"\multicolumn{5}{l}{\textbf{" in head
        assert first.startswith("label")
    assert "(continued)" in pages[1]
    assert "(continued)" not in pages[0]


def test_no_p_value_is_zero(tmp_path):
    assert [p_value_text(value) for value in (0.0, 0.0004, 0.0006, 1.0)] == ["<0.001", "<0.001", "0.001", "1.000"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed, so nothing can be compiled")
@pytest.mark.parametrize("name", ["results", "pairs", "settings", "aggregates"])
def test_latex_sets_the_tables_within_the_page(comparison, tmp_path, name):
    (tmp_path / "paper.tex").write_text(DOCUMENT % tables(comparison)[name], encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 1000
    for trouble in ("Overfull", "too large", "Missing character"):
        assert trouble not in done.stdout
