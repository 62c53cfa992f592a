"""The sequential test against adastop and by simulation, and the advice that is made of it."""

import json
import math
import re
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from test_experiments_report import carry_out, evaluation, make_half, run

from sb3_pg_ext.experiments.cli import main
from sb3_pg_ext.experiments.comparison.advice import Lack, advise
from sb3_pg_ext.experiments.comparison.analysis import Comparison
from sb3_pg_ext.experiments.report import write_report
from sb3_pg_ext.experiments.statistics import (
    Design,
    missing_seeds,
    rank_test,
    seeds_to_resolve,
    sequential,
    settle,
)
from sb3_pg_ext.experiments.store import Store
from sb3_pg_ext.experiments.summary import summarise

# Its bounds are one-sided and its statistics are not: with alpha it is the two-sided test with 2 alpha.
ADASTOP = json.loads((Path(__file__).parent / "adastop_numbers.json").read_text())["cases"]
ADASTOP_ALPHA = 0.1


def found(scores, design, **options):
    """Pair, in the order of the labels -> (state, looks)."""
    labels = list(scores)
    return {
        tuple(sorted((decision.first, decision.second), key=labels.index)): (decision.state, decision.looks)
        for decision in settle(scores, design, **options)
    }


def agreement(n_algorithms):
    same = []
    for case in (case for case in ADASTOP if len(case["scores"]) == n_algorithms):
        for decision in settle(case["scores"], Design(case["groups"], case["size"], ADASTOP_ALPHA)):
            a, b = sorted((decision.first, decision.second))
            word = "equal" if decision.state == "equal" else "larger" if decision.first == a else "smaller"
            same.append([word, decision.looks] == case["decisions"][f"{a} {b}"])
    return same


def test_two_algorithms_are_decided_as_by_adastop_at_the_same_look():
    same = agreement(2)
    assert len(same) == 64
    assert all(same)


def test_three_algorithms_are_decided_nearly_as_by_adastop():
    # Its statistics are not divided by the spread of the pair.
    same = agreement(3)
    assert len(same) == 48
    assert sum(same) >= 45


@pytest.mark.parametrize(("alpha", "at_first", "in_all"), [(0.2, 40, 80), (0.1, 0, 40)])
def test_the_error_of_a_pair_is_alpha_exactly_over_all_relabellings(alpha, at_first, in_all):
    design, scores = Design(2, 3, alpha), np.random.default_rng(0).normal(size=(2, 6))
    looks = []
    for chosen in product(combinations(range(6), 3), repeat=2):
        first = [scores[group, list(one)] for group, one in enumerate(chosen)]
        second = [np.delete(scores[group], list(one)) for group, one in enumerate(chosen)]
        state, look = found({"a": np.concatenate(first), "b": np.concatenate(second)}, design)["a", "b"]
        looks += [look] if state == "different" else []
    assert (looks.count(1), len(looks)) == (at_first, in_all)  # of 20 * 20


def share_of_errors(draw, nulls, n_studies=800):
    """Share of studies in which a pair of ``nulls`` is called different."""
    errors = 0
    for study in range(n_studies):
        scores = dict(zip("abcd", draw(np.random.default_rng(study)), strict=False))
        states = found(scores, Design(), permutations=504, seed=study)
        errors += any(states[pair][0] == "different" for pair in nulls)
    return errors / n_studies


@pytest.mark.parametrize(
    ("draw", "nulls"),
    [
        (lambda g: g.normal(size=(3, 25)), [("a", "b"), ("a", "c"), ("b", "c")]),
        (lambda g: np.minimum(500, 480 + 60 * g.normal(size=(2, 25))), [("a", "b")]),
        (lambda g: g.normal(size=(4, 25)) + np.array([[0], [0], [3], [3]]), [("a", "b"), ("c", "d")]),
    ],
    ids=["none differ", "capped and tied", "two by two"],
)
def test_no_more_than_alpha_of_studies_find_a_difference_that_is_none(draw, nulls):
    # Three standard errors of 800 studies are 0.023; five looks at 0.05 each would come to 0.12.
    assert 0.02 < share_of_errors(draw, nulls) < 0.05 + 0.023


def test_larger_differences_are_found_more_often_and_earlier():
    def outcomes(shift):
        for study in range(150):
            first, second = np.random.default_rng(study).normal(size=(2, 25))
            yield found({"a": first, "b": second + shift}, Design(), permutations=504)["a", "b"]

    shares, looks = [], []
    for shift in (0.0, 0.6, 1.2, 3.0):
        decided = list(outcomes(shift))
        shares.append(np.mean([state == "different" for state, _ in decided]))
        looks.append(np.mean([look for _, look in decided]))
    assert shares[0] < 0.11 < 0.3 < shares[1] < 0.7 < 0.9 < shares[2] <= shares[3] == 1
    assert looks == sorted(looks, reverse=True)
    assert looks[-1] < 1.3


def test_a_noisy_pair_does_not_hide_a_small_difference_between_others():
    noise = np.random.default_rng(0).normal(size=(4, 25))
    scores = {"a": 100 * noise[0], "b": 100 * noise[1], "c": 500 + noise[2], "d": 503 + noise[3]}
    states = found(scores, Design())
    assert states["c", "d"] == ("different", 1)
    assert states["a", "b"] == ("equal", 5)


def test_runs_that_are_all_alike_are_equal_as_far_as_can_be_told():
    (decision,) = settle({"a": [500.0] * 25, "b": [500.0] * 25})
    assert (decision.state, decision.looks, decision.difference) == ("equal", 5, 0.0)


def test_a_look_waits_for_the_algorithms_that_are_open_and_for_no_others():
    noise = np.random.default_rng(1).normal(size=(3, 25))
    scores = {"far": noise[0, :5] + 50, "a": noise[1, :12], "b": noise[2, :9]}
    states = found(scores, Design())
    assert states == {("far", "a"): ("different", 1), ("far", "b"): ("different", 1), ("a", "b"): ("open", 1)}
    assert missing_seeds(scores, [("a", "b")], 10) == {"b": 1}
    assert found({**scores, "b": noise[2, :10]}, Design())["a", "b"] == ("open", 2)
    assert set(found({**scores, "far": noise[0, :4]}, Design()).values()) == {("open", 0)}


def test_what_is_beyond_the_design_changes_nothing():
    noise = np.random.default_rng(2).normal(size=(2, 30))
    scores = {"a": noise[0, :25], "b": noise[1, :25]}
    assert settle(scores) == settle({"a": np.append(scores["a"], [1e6] * 5), "b": scores["b"]})


def test_the_better_one_comes_first():
    noise = np.random.default_rng(3).normal(size=(2, 5))
    (decision,) = settle({"low": noise[0], "high": noise[1] + 20})
    assert (decision.first, decision.second) == ("high", "low")
    assert decision.difference == pytest.approx(noise[1].mean() + 20 - noise[0].mean())


@pytest.mark.parametrize(("groups", "size", "first"), [(5, 5, 1), (4, 3, 2), (5, 4, 2), (3, 10, 1)])
def test_the_first_look_that_can_decide_anything(groups, size, first):
    design, gap = Design(groups, size), np.arange(size * groups) / 1000
    assert design.first_look == first
    assert found({"a": gap, "b": gap + 100}, design)["a", "b"] == ("different", first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 0}, "groups=0: at least 1"),
        ({"size": 0}, "size=0: at least 1"),
        ({"alpha": 1.0}, "alpha=1.0: a probability"),
        ({"groups": 5, "size": 1}, "groups=5, size=1, alpha=0.05: so few seeds .* 0.062"),
    ],
)
def test_designs_that_cannot_be_meant_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Design(**arguments)
    with pytest.raises(ValueError, match=r"alpha=1e-05: with 10000 permutations it can be 0\.0001 at least"):
        settle({}, Design(alpha=1e-5))


def test_the_estimated_number_of_seeds_has_the_power_that_it_says():
    # Normal scores one standard deviation apart: P(A > B) = Phi(1 / sqrt 2) = 0.760.
    n = seeds_to_resolve(0.760)
    assert n == 20
    generator = np.random.default_rng(0)
    p_values = [rank_test(generator.normal(size=n) + 1, generator.normal(size=n)) for _ in range(400)]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.8, abs=0.08)
    assert seeds_to_resolve(0.240) == n
    assert seeds_to_resolve(0.760, n_pairs=10) > 1.5 * n
    assert math.isinf(seeds_to_resolve(0.5))


# --- the advice


def study(folder, ends):
    """``ends``: label -> per seed, how its run ends; finished runs of "high" are far above the others."""
    generator = np.random.default_rng(0)
    with Store(folder / "study.sqlite", create=True) as store:
        runs = [run(label, k) for label, states in ends.items() for k in range(len(states))]
        store.declare(runs, "sb3-pg compare study.yml")
        for spec in runs:
            end = ends[spec.label][spec.replicate]
            height = 300.0 * (spec.label == "high") + generator.normal()
            if end != "pending":
                carry_out(store, spec, [0.0, height, height], end)
    return folder


def advice_of(folder, design=None):
    with Store(folder / "study.sqlite") as store:
        comparison = Comparison(summarise(store.records()))
    return advise(comparison, "CartPole-v1", design)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr("sb3_pg_ext.experiments.report.charts", lambda comparison: [])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    finished = ["finished"] * 5
    return study(
        tmp_path_factory.mktemp("mixed"),
        {
            "high": finished,
            "one": [*finished, *finished],
            "two": ["finished", "failed", *finished, "pending", *finished],
            "never": ["failed", "failed"],
        },
    )


def test_failed_runs_are_passed_over_and_missing_ones_hold_up_those_after_them(mixed):
    advice = advice_of(mixed)
    assert {label: len(scores) for label, scores in advice.scores.items()} == {"high": 5, "one": 10, "two": 6}
    assert advice.lacks == {"two": Lack((7,), 0)}
    assert advice.sentence() == (
        "Not settled: 1 of 3 pairs is open after look 1 of 5; look 2 takes 10 finished seeds of each: seed 7 of two is "
        "still to come. 3 failed runs were passed over. Runs that do not fail are all "
        "that is compared of two (without 1 that failed). Nothing but failures: never."
    )


def test_rows_say_what_is_decided_and_what_is_needed(mixed):
    rows = advice_of(mixed).rows()
    assert rows[0][0] == "more seeds needed"
    assert rows[0][4:6] in (("10, 11", "+0; seed 7"), ("11, 10", "seed 7; +0"))
    assert rows[0][6].endswith(" seeds")
    for row in rows[1:]:
        assert row[:2] == ("different, by 5 seeds", "high")
        assert row[5:] == ("–", "–")


def test_there_may_be_nothing_to_say(tmp_path):
    advice = advice_of(study(tmp_path, {"high": ["finished"] * 5, "never": ["failed"]}))
    assert advice.rows() == []
    assert advice.sentence().startswith("There is no pair of algorithms with runs to compare.")


def test_too_few_seeds_say_how_many_there_must_be(tmp_path):
    folder = study(tmp_path, {"high": ["finished"] * 2, "one": ["finished", "running"]})
    assert advice_of(folder, Design(4, 3)).sentence() == (
        "Not settled: there are too few seeds for a look; look 1 takes 3 finished seeds of each: 1 more of high; "
        "seed 1 of one is still to come, and 1 more. Nothing can be decided before look 2, at 6 seeds."
    )
    assert "more seeds needed" in advice_of(folder).rows()[0]


def test_runs_that_are_asked_for_already_are_no_more_seeds(tmp_path):
    ends = {
        "a2c": ["pending", "finished"],
        "high": ["finished"] * 5,
        "one": [*["pending"] * 3, "finished", "running", "failed", "pending"],
    }
    advice = advice_of(study(tmp_path, ends))
    assert advice.lacks == {"a2c": Lack((0,), 3), "one": Lack((0, 1, 2, 4), 0)}
    said = "look 1 takes 5 finished seeds of each: "
    one = "seeds 0 to 2, 4 of one are still to come"
    assert sorted(advice.sentence().partition(said)[2].partition(". ")[0].split("; ")) == [
        "seed 0 of a2c is still to come, and 3 more",
        one,
    ]
    (row,) = (row for row in advice.rows() if set(row[1:3]) == {"a2c", "high"})
    assert sorted(row[4].split(", ")) == ["1", "5"]
    assert sorted(row[5].split("; ")) == ["+0", "seed 0, +3"]


def test_those_that_lack_the_same_are_named_together(tmp_path):
    folder = study(
        tmp_path,
        {
            "a": ["finished"] * 3,
            "b": ["finished"] * 3,
            "c": ["finished", "finished", "pending", "pending"],
            "d": ["finished", "finished", "pending", "pending"],
            "e": ["finished"] * 4,
        },
    )
    lacking = advice_of(folder).sentence().partition("seeds of each: ")[2].removesuffix(".")
    lacking = re.sub(r"b and a", "a and b", re.sub(r"d and c", "c and d", lacking))  # the better one is first
    assert sorted(lacking.split("; ")) == [
        "1 more of e",
        "2 more of each of a and b",
        "seeds 2, 3 of c and d are still to come, and 1 more of each",
    ]


def test_all_that_lack_the_same_need_no_names(tmp_path):
    all_of_them = study(tmp_path / "more", {label: ["finished"] * 2 for label in "abcd"})
    assert "seeds of each: 3 more of each of the 4 algorithms." in advice_of(all_of_them).sentence()
    waiting = study(tmp_path / "waiting", {label: ["finished", *["pending"] * 4] for label in "abcde"})
    said = "seeds of each: seeds 1 to 4 of the 5 algorithms are still to come."
    assert said in advice_of(waiting).sentence()


def test_the_power_is_estimated_from_the_seeds_of_the_decision_and_not_from_few(tmp_path):
    def resolving(name, values, design=None):
        folder = tmp_path / name
        with Store(folder / "study.sqlite", create=True) as store:
            runs = [(run(label, k), value) for label, row in values.items() for k, value in enumerate(row)]
            store.declare([spec for spec, _ in runs], "")
            for spec, value in runs:
                if value is not None:
                    carry_out(store, spec, [0.0, value, value], "finished")
        return advice_of(folder, design).resolving.get(frozenset("ab"))

    first = {"a": [1.0, 3, 5, 7, 9], "b": [2.0, 4, 6, 8, 0]}
    expected = seeds_to_resolve(15 / 25)
    assert resolving("look", first) == expected
    # Beyond the look, and behind a run that is missing, there are seeds that have decided nothing.
    assert resolving("beyond", {"a": [*first["a"], 90.0, 91.0], "b": first["b"]}) == expected
    assert resolving("behind", {"a": [*first["a"], None, 90.0], "b": [*first["b"], None, 9.0]}) == expected
    assert resolving("three", {"a": [1.0, 3, 5, 7], "b": [2.0, 4, 0]}) == seeds_to_resolve(9 / 12)
    assert resolving("two", {"a": [1.0, 3, 5, 7], "b": [2.0, 4]}) is None
    assert resolving("held up", {"a": [1.0, 3, 5, 7], "b": [2.0, 4, None, 6]}) is None
    assert resolving("small groups", {"a": [1.0, 3], "b": [2.0, 4]}, Design(5, 2)) is None


def test_permutations_are_made_for_looks_alone(monkeypatch):
    made, signs = [], sequential._signs
    monkeypatch.setattr(sequential, "_signs", lambda *options: made.append(options) or signs(*options))
    few = {"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0, 6.0], "c": [0.0]}
    assert {decision.state for decision in settle(few, Design(5, 1000))} == {"open"}
    assert made == []
    settle({label: [float(n) for n in range(25)] for label in "ab"})
    assert len(made) == 1


# --- imported runs


@pytest.fixture
def elsewhere(tmp_path):
    """Five finished seeds of "high" and "one", and two imported ones of "old"."""
    folder = study(tmp_path, {"high": ["finished"] * 5, "one": ["finished"] * 5})
    with Store(folder / "study.sqlite") as store:
        for number in range(2):
            spec = replace(run("old (imported)", number), origin=f"digest {number}")
            store.add_imported(spec, [evaluation(step, 50.0) for step in (0, 1000)], {})
    return folder


def test_no_seeds_are_asked_of_imported_runs(elsewhere, capsys):
    left_out = "Left out, being imported, so that no seeds can be added: old (imported)."
    settled = f"Settled: every pair is decided, by 5 seeds of each algorithm. {left_out}"
    assert advice_of(elsewhere).sentence() == settled
    write_report(elsewhere)
    assert settled in (elsewhere / "report.html").read_text()
    assert settled in (elsewhere / "report.md").read_text()
    assert main(["study", "advise", str(elsewhere)]) == 0
    assert left_out in " ".join(capsys.readouterr().out.split())


def test_imported_runs_that_are_named_are_compared(elsewhere, capsys):
    assert main(["study", "advise", str(elsewhere), "--algo", "one", "old (imported)"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "5 finished seeds of each: 3 more of old (imported). More seeds can only be imported: old (imported)." in text
    )
    assert "Left out" not in text
    with Store(elsewhere / "study.sqlite") as store:
        only = [summary for summary in summarise(store.records()) if summary.label == "old (imported)"]
    sentence = advise(Comparison(only), "CartPole-v1").sentence()
    assert sentence.startswith("There is no pair of algorithms with runs to compare. Left out, being imported")


def test_a_settled_comparison_says_so(tmp_path):
    folder = study(tmp_path, {"high": ["finished"] * 5, "one": ["finished"] * 5})
    assert advice_of(folder).sentence() == "Settled: every pair is decided, by 5 seeds of each algorithm."


def test_the_command_prints_the_advice(mixed, capsys):
    assert main(["study", "advise", str(mixed)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "1 of 3 pairs is open after look 1 of 5" in text
    assert "By a test that is repeated at 5, 10, 15, 20, 25 seeds" in text
    options = ["--algo", "high", "two", "--groups", "3", "--group-size", "6", "--alpha", "0.01"]
    assert main(["study", "advise", str(mixed), *options]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "look 1 takes 6 finished seeds of each: 1 more of high." in text
    assert "at 6, 12, 18 seeds" in text
    assert "probability 0.01," in text


def test_the_command_refuses_what_cannot_be(mixed, capsys):
    assert main(["study", "advise", str(mixed), "--algo", "sac"]) == 2
    assert "--algo sac: the study has high, one, two, never" in capsys.readouterr().err
    assert main(["study", "advise", str(mixed), "--groups", "1", "--group-size", "2"]) == 2
    assert "so few seeds cannot show any difference" in capsys.readouterr().err


def test_page_and_markdown_say_whether_it_is_settled(mixed):
    write_report(mixed)
    sentence = "open after look 1 of 5; look 2 takes 10 finished seeds of each: seed 7 of two is still to come."
    html, markdown = ((mixed / name).read_text() for name in ("report.html", "report.md"))
    assert sentence in html
    assert sentence in markdown
    assert "different, by 5 seeds" in html
    assert f"sb3-pg study advise {mixed}" in html


def test_a_report_of_half_a_study_has_the_section(tmp_path):
    write_report(make_half(tmp_path))
    text = (tmp_path / "report.md").read_text()
    assert (
        "**CartPole-v1**: Not settled: there are too few seeds for a look; look 1 takes 5 finished seeds of each"
        in text
    )
    assert "**Acrobot-v1**: There is no pair of algorithms with runs to compare." in text
