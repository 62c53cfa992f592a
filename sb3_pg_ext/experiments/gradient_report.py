"""What the gradient laboratory has found, as a table, as Markdown and as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sb3_pg_ext.bases.atomic_file import atomic_write
from sb3_pg_ext.diagnostics.laboratory import AtSize, Measurement
from sb3_pg_ext.diagnostics.records import to_json
from sb3_pg_ext.diagnostics.statistics import FALSE_ALARM
from sb3_pg_ext.experiments.report import markdown_table
from sb3_pg_ext.experiments.variance_figure import draw_variances

JSON, MARKDOWN, FIGURE, VARIANCES = "gradlab.json", "gradlab.md", "gradlab.png", "variance.png"
CAPTIONS = {
    FIGURE: "Bias and error of every estimator",
    VARIANCES: "Variance of score-function and pathwise estimators",
}
HEADER = (
    "algorithm",
    "estimator",
    "estimates",
    "target to ∇J",
    "bias, %",
    "largest",
    "variance",
    "cosine",
    "rms error",
    "steps",
    "ms",
    "verdict",
)
SYMBOLS = {
    "gradient": "∇J",
    "gradient_undiscounted_states": "∇J no γᵗ",
    "gradient_with_critic": "∇J by critic",
    "gradient_at_old_states": "∇J at old states",
    "natural_gradient": "F⁻¹∇J",
    "natural_gradient_undiscounted_states": "F⁻¹∇J no γᵗ",
    "smoothed_gradient": "∇J smoothed",
}
#: What the dashed line of the figure is.
SLOPE = "1 / √steps"
HOLDS = {"mean": "", "limit": ", M→∞", "direction": ", direction"}


def row(found: Measurement, size: AtSize | None = None) -> list[str]:
    """The cells under :data:`HEADER`, at one number of episodes, by default the largest."""
    size = size or found.sizes[-1]
    deviation = size.deviation or (found.limit if size is found.sizes[-1] else None)
    claim = found.claim
    return [
        found.algorithm,
        claim.name,
        SYMBOLS.get(claim.target, claim.target.rpartition(":")[2]) + HOLDS[claim.holds],
        beside_gradient(found),
        "–" if deviation is None or deviation.along is None else share(deviation.along, deviation.along_error),
        "–" if deviation is None else f"{deviation.largest:.1f} / {deviation.limit:.1f}",
        f"{size.variance:.2g}",
        f"{size.cosine:.3f}",
        "–" if claim.holds == "direction" else f"{size.rmse:.2f}",
        f"{size.steps:,}",
        f"{1e3 * size.seconds:.1f}",
        found.verdict,
    ]


def beside_gradient(found: Measurement) -> str:
    """The angle between target and grad J in degrees, and how many times as long as that the target is."""
    angle = math.degrees(math.acos(max(-1.0, min(1.0, found.target_cosine))))
    return f"{angle:.0f}°" if found.claim.holds == "direction" else f"{angle:.0f}°, ×{found.target_length:.2f}"


def share(value: float, error: float | None) -> str:
    """In per cent, with the half width of its interval."""
    return f"{100 * value + 0.0:+.1f} ± {100 * (error or 0.0):.1f}"


def conclusion(measurements: Sequence[Measurement]) -> str:
    """In one sentence."""
    refuted = sum(one.refuted for one in measurements)
    undecided = sum(not one.agrees for one in measurements) - refuted
    verdict = "none is refuted" if not refuted else f"{refuted} refuted"
    unknown = f", {undecided} undecided (more --samples or --repeats would tell)" if undecided else ""
    pairs = len({(one.algorithm, one.claim.name) for one in measurements})
    n_comparisons = sum(len(one.deviations) for one in measurements)
    return (
        f"{pairs} estimators on {len(testbeds_of(measurements))} testbeds, {n_comparisons} comparisons: {verdict}"
        f"{unknown}. If all were right, the chance of any alarm in all of this would be {FALSE_ALARM:.0%} at most."
    )


def testbeds_of(measurements: Sequence[Measurement]) -> list[str]:
    """In the order of the measurements."""
    return list(dict.fromkeys(one.testbed for one in measurements))


def title(measurements: Sequence[Measurement], bed: str) -> str:
    """What a table of the measurements on ``bed`` is about."""
    first = next(one for one in measurements if one.testbed == bed)
    size = first.sizes[-1]
    return f"{bed}: {first.n_parameters} parameters, {size.repeats} estimates from {size.episodes} episodes each"


def markdown(measurements: Sequence[Measurement], every_size: bool = True) -> str:
    """Tables of all testbeds, and the sentences about bias by design.

    :param every_size: further tables with all numbers of episodes, folded
    """
    parts = [conclusion(measurements)]
    for bed in testbeds_of(measurements):
        here = [one for one in measurements if one.testbed == bed]
        parts += [f"**{title(measurements, bed)}**", markdown_table(HEADER, map(row, here), right_from=3)]
        if every_size:
            rows = [[f"{size.episodes}", *row(one, size)] for one in here for size in one.sizes]
            folded = markdown_table(("episodes", *HEADER), rows, right_from=4)
            parts.append(f"<details><summary>{bed}: every number of episodes</summary>\n\n{folded}\n\n</details>")
    return "\n\n".join([*parts, *_biases(measurements)]) + "\n"


def _biases(measurements: Sequence[Measurement]) -> list[str]:
    by_sentence: dict[str, list[str]] = {}
    for one in measurements:
        names = by_sentence.setdefault(one.claim.bias, []) if one.claim.bias else []
        label = f"{one.algorithm} ({one.claim.name})"
        if label not in names:
            names.append(label)
    lines = [f"* {', '.join(names)}: {sentence}." for sentence, names in by_sentence.items()]
    return ["Where the target is not ∇J itself, that is by design:", "\n".join(lines)] if lines else []


def write(measurements: Sequence[Measurement], folder: Path, command: str) -> tuple[list[Path], list[str]]:
    """Write json, Markdown and figures.

    :return: what was written, and what the reader should know besides
    """
    files, notes = [folder / JSON, folder / MARKDOWN], []
    with atomic_write(files[0]) as temporary:
        temporary.write_text(to_json(measurements, command), encoding="utf-8")
    try:
        draw(measurements, folder / FIGURE)
        files.append(folder / FIGURE)
        files += [folder / VARIANCES] if draw_variances(measurements, folder / VARIANCES) else []
    except ModuleNotFoundError:
        notes.append('The figures need matplotlib: pip install "sb3_pg_ext[report]".')
    pictures = [f"![{CAPTIONS[file.name]}]({file.name})\n" for file in files[2:]]
    text = "\n".join(["# Gradient laboratory\n", markdown(measurements), *pictures, f"```sh\n{command}\n```\n"])
    with atomic_write(files[1]) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return files, notes


def draw(measurements: Sequence[Measurement], path: Path) -> None:
    """Bias of every estimator with its interval above, error against env steps below; a column for each testbed.

    :raises ModuleNotFoundError: matplotlib is not installed
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    beds = testbeds_of(measurements)
    rows = _rows(measurements)
    upper = 0.21 * max(map(len, rows)) + 0.9
    figure = Figure(figsize=(3.4 + 3.4 * len(beds), upper + 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(beds), squeeze=False, height_ratios=(upper, 3.2))
    algorithms = list(dict.fromkeys(one.algorithm for one in measurements))
    for column, bed in enumerate(beds):
        here = [one for one in measurements if one.testbed == bed]
        first = column == 0 or rows[column] is not rows[column - 1]
        _draw_bias(panels[0, column], here, rows[column], algorithms, with_labels=first)
        _draw_error(panels[1, column], here, algorithms, with_label=column == 0)
        panels[0, column].set_title(bed, loc="left", fontweight="bold", fontsize=11)
    known: dict[str, Any] = {}
    for panel in panels[1]:
        handles, names = panel.get_legend_handles_labels()
        slope = dict(zip(names, handles, strict=True))
        known = {name: handle for name, handle in (known | slope).items() if name != SLOPE} | {SLOPE: slope[SLOPE]}
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=len(known), frameon=False, fontsize=9)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _rows(measurements: Sequence[Measurement]) -> list[list[tuple[str, str]]]:
    """The estimators of each column: one list for all testbeds that share any, so that only the first needs labels."""
    rows: list[list[tuple[str, str]]] = []
    for bed in testbeds_of(measurements):
        here = [_label(one) for one in measurements if one.testbed == bed]
        if rows and set(here) & set(rows[-1]):
            rows[-1] += [label for label in here if label not in rows[-1]]
            rows.append(rows[-1])
        else:
            rows.append(here)
    return rows


def _label(one: Measurement) -> tuple[str, str]:
    return one.algorithm, one.claim.name


def _style(algorithms: Sequence[str], algorithm: str) -> dict[str, Any]:
    from sb3_pg_ext.experiments.figure import COLOURS

    index = algorithms.index(algorithm)
    return {"color": COLOURS[index % len(COLOURS)], "marker": "osD^vPX*h"[index % 9]}


def _draw_bias(
    panel: Any,
    measurements: Sequence[Measurement],
    labels: Sequence[tuple[str, str]],
    algorithms: Sequence[str],
    with_labels: bool,
) -> None:
    panel.axvline(0, color="#333333", linewidth=0.8)
    for one in measurements:
        y, deviation = labels.index(_label(one)), one.sizes[-1].deviation or one.limit
        style = _style(algorithms, one.algorithm)
        if deviation is not None and deviation.along is not None:
            x, error = 100 * deviation.along, 100 * (deviation.along_error or 0.0)
            panel.errorbar(x, y, xerr=error, capsize=2, markersize=4, linewidth=1.3, **style)
        else:
            panel.text(0, y, " direction only", va="center", fontsize=7, color=style["color"])
        if one.refuted:
            panel.text(0.99, y, "✗ ", transform=panel.get_yaxis_transform(), ha="right", va="center", color="#D55E00")
    panel.set_yticks(range(len(labels)), [f"{key}  {name}" if with_labels else "" for key, name in labels])
    panel.set_ylim(len(labels) - 0.4, -0.6)
    panel.set_xlabel("bias along the exact vector\n(% of its length, 95 % interval)", fontsize=9)
    _tidy(panel)


def _draw_error(panel: Any, measurements: Sequence[Measurement], algorithms: Sequence[str], with_label: bool) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    shown = [one for one in measurements if one.claim.holds != "direction"]
    for one in shown:
        points = [(size.steps, size.rmse) for size in one.sizes if size.rmse > 1e-4]
        if points:  # an estimate without error has no place on a logarithmic axis
            style = {**_style(algorithms, one.algorithm), "linewidth": 0.9, "markersize": 3.5, "alpha": 0.75}
            panel.plot(*zip(*points, strict=True), **style, label=one.algorithm)
    steps = [size.steps for size in shown[0].sizes] if shown else [1, 10]
    middle = sorted(one.sizes[0].rmse for one in shown)[len(shown) // 2] if shown else 1.0
    slope = [middle * math.sqrt(steps[0] / n) for n in steps]
    panel.plot(steps, slope, color="#333333", linestyle=(0, (4, 2)), linewidth=1.4, label=SLOPE)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(steps, [f"{n:,}" for n in steps])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.set_xlabel("environment steps of one estimate", fontsize=9)
    if with_label:
        panel.set_ylabel("rms error of one estimate\n(share of the exact vector's length)", fontsize=9)
    _tidy(panel)


def _tidy(panel: Any) -> None:
    panel.grid(color="#DDDDDD", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#999999")
    panel.tick_params(labelsize=8, length=0)
