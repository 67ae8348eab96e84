"What result pages share: sentences with computed numbers, tables that fold, figures in which a control looks like one"
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown, display
from matplotlib.axes import Axes

from .plots import _band, _spread, axis_label, summary_table, theme

ROWS = 12  # of a table before it folds
WIDTH = 7.5  # inches of a figure: at 96 pixels an inch, the column of the site
OTHERS = ("#0173b2", "#029e73", "#cc78bc", "#56b4e9", "#ca9161", "#de8f05", "#949494")  # colours of methods' curves
DPI = 72  # JupyterLab draws twice as many
METHOD, CONTROL = "#0173b2", "#c44e00"  # colours; shapes differ too


def say(
    text: str,  # markdown, its numbers computed
) -> None:
    "A sentence of the page"
    display(Markdown(text))


def number(
    value: float,
    digits: int = 1,
    scale: float = 1,  # 100 makes points of shares
) -> str:
    "A number with a real minus sign and thousands apart; a zero has no sign"
    rounded = round(scale * float(value), digits) + 0.0
    return f"{rounded:,.{digits}f}".replace("-", "−")


def within(
    interval: Iterable[float],  # mean, low, high, …
    digits: int = 1,
    scale: float = 1,  # negative turns the difference round
) -> str:
    "`3.1 (2.1 … 4.0)`"
    mean, low, high = (scale * x for x in list(interval)[:3])
    low, high = sorted((low, high))
    return f"{number(mean, digits)} ({number(low, digits)} … {number(high, digits)})"


def _cell(value: object, scale: float, digits: int) -> str:
    "One cell of a table; what is lacking is a dash"
    if isinstance(value, str): return value
    return number(value, digits, scale) if pd.notna(value) else "–"


def _html(table: pd.DataFrame) -> str:
    "A table of text as HTML"
    return table.to_html(border=0, escape=True)


def folded(
    html: str,
    summary: str,  # what is behind it
) -> str:
    "Something a reader opens"
    return f"<details><summary>{summary}</summary>{html}</details>"


def show_table(
    table: pd.DataFrame,  # one row an arm, its name the index
    columns: Mapping[str, tuple[str, float, int]],  # column → heading, scale, digits
    index: Sequence[str] = ("arm",),  # headings of the index
    rows: int = ROWS,  # that stand open; 0 folds all
    fold: str = "",  # what is behind the fold
) -> None:
    "A table in words; rows beyond the first dozen fold"
    text = pd.DataFrame({heading: [_cell(v, scale, digits) for v in table[name]]
                         for name, (heading, scale, digits) in columns.items()}, index=table.index)
    text.index.names = list(index)
    parts = [_html(text.iloc[:rows])] if rows else []
    if len(text) > rows:
        parts.append(folded(_html(text.iloc[rows:]), f"{fold or 'more'} ({len(text) - rows} rows)"))
    display(HTML("\n".join(parts)))


def show_verdicts(
    verdicts: Mapping[str, object],  # id → verdict, as `judge_cards` gives them
) -> None:
    "How many cards of a study came out how, and the cards behind a fold"
    counts = Counter(v.verdict for v in verdicts.values())
    say(f"{len(verdicts)} cards: " + ", ".join(f"{n} {word}" for word, n in counts.most_common())
        + ". Their rules were committed before the runs; [the board](../board.qmd) explains the words.")
    lines = ["| card | claim | verdict | number |", "|---|---|---|---|"]
    for id, v in verdicts.items():
        cells = [f"[{id}](../board.qmd#{id})", " ".join(v.card["claim"].split()), v.verdict, v.why]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    say("<details><summary>the cards, one by one</summary>\n\n" + "\n".join(lines) + "\n\n</details>")


def figure(
    height: float,  # inches
    *shape: int,  # rows and columns of panels, as in `plt.subplots`
    **options: object,  # of `plt.subplots`
) -> tuple:
    "A figure as wide as the column, its text at nine points; figure and axes"
    theme()
    sizes = {"font.size": 9, "axes.labelsize": 9, "axes.titlesize": 9.5, "axes.titlepad": 8}
    plt.rcParams.update({"figure.dpi": DPI, "savefig.dpi": DPI, **sizes})
    return plt.subplots(*shape, figsize=(WIDTH, height), layout="constrained", **options)


def _mark(control: bool) -> dict:
    "Colour and shape of an arm"
    return dict(color=CONTROL, marker="s") if control else dict(color=METHOD, marker="D")


def reference(
    ax: Axes,
    lines: Mapping[str, float],  # name → value
    upright: bool = True,  # the value is on the horizontal axis
) -> None:
    "Dashed lines, named at the edge of the axes"
    for name, value in lines.items():
        (ax.axvline if upright else ax.axhline)(value, color="0.45", linestyle=(0, (4, 3)), linewidth=1.1, zorder=1)
        place = dict(xy=(value, 1), xytext=(0, 2), xycoords=("data", "axes fraction"), ha="center", va="bottom")
        beside = dict(xy=(0.01, value), xytext=(0, 1), xycoords=("axes fraction", "data"), ha="left", va="bottom")
        ax.annotate(name, **(place if upright else beside), textcoords="offset points", fontsize=8.5, color="0.3")


def draw_arms(
    ax: Axes,
    table: pd.DataFrame,  # one row a run, its arm in `arm`
    y: str,  # metric
    controls: Collection[str] = (),  # arms that are controls
    scale: float = 1,
    digits: int = 1,
    bounds: tuple[float, float] = (-np.inf, np.inf),  # of the metric, after scaling
    order: Sequence[str] = (),  # of the arms from above; by their means otherwise, largest first
    label: str = "",  # of the axis
) -> None:
    "An arm a line: a circle a random seed, the mean and its interval; diamonds are methods, squares are controls"
    values = table.assign(**{y: scale * table[y]})
    means = values.groupby("arm")[y].mean().sort_values(ascending=False)
    names = list(order) if len(order) else list(means.index)
    rows = summary_table(values, "arm", y)
    for place, name in enumerate(names):
        if name not in rows.index: continue
        row = rows.loc[name]
        mark = _mark(name in controls)
        ax.plot(np.clip([row["low"], row["high"]], *bounds), [place] * 2, color=mark["color"], linewidth=2, zorder=3)
        ax.plot(row["mean"], place, **mark, markersize=5.5, zorder=5)
        runs = values.loc[values["arm"] == name, y]
        circles = dict(s=12, facecolor="white", edgecolor=mark["color"], linewidth=0.8, zorder=4)
        ax.scatter(runs, [place + 0.25] * len(runs), **circles)
        right = dict(xycoords=ax.get_yaxis_transform(), va="center", fontsize=9, annotation_clip=False)
        ax.annotate(number(row["mean"], digits), (1.01, place), **right)
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6), xlabel=label or axis_label(y))
    ax.grid(axis="x", color="0.92", zorder=0)
    ax.tick_params(axis="y", length=0)


def key(
    ax: Axes,
    **where: object,  # options of `Axes.legend`
) -> None:
    "Says which mark is which"
    mark = lambda label, **how: plt.Line2D([], [], linestyle="", label=label, **how)
    marks = [mark(name, markersize=5.5, **_mark(name == "control")) for name in ("method", "control")]
    seed = mark("one random seed", marker="o", markersize=4, markerfacecolor="white", markeredgecolor="0.3")
    ax.legend(handles=[*marks, seed], frameon=False, fontsize=8.5, **where)


def draw_curves(
    ax: Axes,
    curves: pd.DataFrame,  # one row an evaluation, its arm in `arm`
    x: str,
    y: str,
    controls: Collection[str] = (),
    scale: float = 1,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    colours: Mapping[str, str] = {},  # of arms that should have the same one in several panels
    names: bool = True,  # at the ends of the lines
) -> None:
    "Thin lines are random seeds, thick ones means with their band; controls are dashed, with squares"
    table, ends = curves.dropna(subset=[y]).assign(**{y: lambda t: scale * t[y]}), {}
    free, greys = cycle(OTHERS), cycle((CONTROL, "0.25", "0.55"))
    for name, group in table.groupby("arm", sort=False):
        control = name in controls
        colour = colours.get(name) or next(greys if control else free)
        for _, run in group.groupby("id"): ax.plot(run[x], run[y], color=colour, alpha=0.3, linewidth=0.7)
        mean = _band(group, x, y, "id")
        ax.plot(mean.index, mean["mean"], color=colour, linewidth=1.8, linestyle="--" if control else "-",
                marker="s" if control else "D", markersize=4, markevery=max(1, len(mean) // 6))
        low, high = (mean[edge].clip(*bounds) for edge in ("low", "high"))
        ax.fill_between(mean.index, low, high, color=colour, alpha=0.15, linewidth=0)
        ends[name] = (mean.index[-1], mean["mean"].iloc[-1], colour)
    ax.set(xlabel=axis_label(x), ylabel=axis_label(y))
    if names: _name_ends(ax, ends)


def _name_ends(ax: Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
    "Each line's name to the right of the axes, in its colour"
    low, high = ax.get_ylim()
    gap = 15 / (ax.get_window_extent().height * 72 / ax.figure.dpi) * (high - low)
    places = _spread([y for _, y, _ in ends.values()], gap)
    for (name, (x, y, colour)), at in zip(ends.items(), places):
        line = dict(arrowstyle="-", color=colour, linewidth=0.6, alpha=0.5)
        how = dict(textcoords=ax.get_yaxis_transform(), va="center", color=colour, fontsize=9, arrowprops=line)
        ax.annotate(name, (x, y), (1.02, at), annotation_clip=False, **how)
