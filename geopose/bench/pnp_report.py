"""What the benchmark of PnP comes to: tables in Markdown, and a figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geopose._io import atomic_path

OURS, FLOOR = "geopose", "maximum likelihood"
_COLORS = {
    OURS: "#0a7d32", FLOOR: "#444444", "geopose, not told": "#8ce99a", "SQPnP + LM": "#d9480f", "EPnP + LM": "#9c36b5",
    "ITERATIVE": "#1971c2", "IPPE + LM": "#c2255c", "OpenCV RANSAC": "#74c0fc", "OpenCV MAGSAC": "#0b7285",
    "PoseLib-LS": "#b08900", "PoseLib": "#e8590c", "PoseLib, fast": "#fcc419", "pycolmap": "#868e96",
}  # fmt: skip


def tables(result: Mapping[str, Any], brief: bool = False) -> str:
    """All parts of the result as Markdown; `brief` leaves out the cells of the accuracy."""
    made: dict[str, Callable[[Any], list[str]]] = {
        "accuracy": _accuracy, "covariances": _covariances, "coverage": _coverage, "outliers": _outliers,
        "swaps": _swaps, "refusal": _refusal, "photographs": _photographs, "speed": _speed,
    }  # fmt: skip
    lines: list[str] = []
    if "trials" in result and any(result.get(name) for name in made if name != "speed"):
        lines = [
            f"{result['trials']} problems in each cell; ten times as many for the coverage, five for our refusals.",
            "",
        ]
    for name, make in made.items():
        if result.get(name) is not None:
            lines += _accuracy(result[name], brief) if name == "accuracy" else make(result[name])
    return "\n".join(lines).strip()


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(f"| {' | '.join(r)} |" for r in rows),
        "",
    ]


def _number(value: float | None, digits: int = 2) -> str:
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:.{digits}f}" if value < 1e4 else "> 10,000"


def _names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Contestants, in order of appearance."""
    found: dict[str, None] = {}
    for row in rows:
        found |= dict.fromkeys(name for name, value in row.items() if isinstance(value, Mapping))
    return list(found)


def _accuracy(rows: Sequence[Mapping[str, Any]], brief: bool = False) -> list[str]:
    lines: list[str] = []
    names = _names(rows)
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    for shape in () if brief else shapes:
        mine = [row for row in rows if row["shape"] == shape]
        shown = [name for name in names if name in mine[0]]
        cells = [
            [str(row["n"]), f"{row['noise_px']:g}"]
            + [f"{_number(row[name]['rotation'])} / {_number(row[name]['translation'])}" for name in shown]
            for row in mine
        ]
        title = f"**{shape}: RMSE over the Cramér–Rao bound**, rotation / translation; each without its gross failures."
        lines += [title, *_grid(["N", "noise, px", *shown], cells)]
    cells, failures = [], []
    for shape in shapes:
        mine = [row for row in rows if row["shape"] == shape]
        cells.append(
            [shape, *(_worst_median([r[name]["over_floor"] for r in mine if name in r]) for name in names)]
        )
        failures.append([shape])
        for name in names:
            gross, avoidable = (
                [r[name][k] for r in mine if name in r] for k in ("gross_percent", "avoidable_percent")
            )
            both = (
                f"{np.mean(gross):.1f} / {np.mean(avoidable):.2f} ({max(avoidable):.1f})" if gross else "–",
            )
            failures[-1] += both
        either = [row["either_percent"] for row in mine]
        failures[-1].append(f"{np.mean(either):.2f} ({min(either):.1f})")
    count = len({(row["n"], row["noise_px"]) for row in rows})
    lines.append(
        "**Rotation RMSE over that of maximum likelihood** on the same problems, those in which neither fails: largest "
        f"and median of {count} cells (N from {min(r['n'] for r in rows)} to {max(r['n'] for r in rows)}, noise from "
        f"{min(r['noise_px'] for r in rows):g} to {max(r['noise_px'] for r in rows):g} px)."
    )
    lines += _grid(["points", *names], cells)
    lines.append(
        "**Gross failures / avoidable ones**, percent, means over the cells (avoidable in the worst cell)."
    )
    return lines + _grid(["points", *names, "geopose: truth among its poses, mean (least)"], failures)


def _worst_median(values: Sequence[float]) -> str:
    good = [v for v in values if np.isfinite(v)]
    return f"{_number(max(good))}, {_number(float(np.median(good)))}" if good else "–"


def _covariances(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = _names(rows)
    cells = [
        [row["shape"]]
        + [
            f"{_number(row[name]['rotation'])} / {_number(row[name]['translation'])}" if name in row else "–"
            for name in names
        ]
        for row in rows
    ]
    title = "**Covariances that differ** (sizes by 4 either way, variances of the axes by up to 20), N = 20:"
    return [f"{title} RMSE over the bound.", *_grid(["points", *names], cells)]


def _coverage(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [
        [row["kind"], str(row["n"]), str(row["outliers"]), _number(row["ok_percent"], 1)]
        + [_number(row[level], 1) for level in ("0.5", "0.9", "0.99")]
        for row in rows
    ]
    head = ["data", "N", "of them outliers", "ok, %", "inside 50 %", "inside 90 %", "inside 99 %"]
    return [
        "**Coverage**: how often the truth lies inside the ellipsoid, percent of the poses that are `ok`.",
        *_grid(head, cells),
    ]


def _outliers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = _names(rows)
    cells = [
        [str(row["n"]), f"{100 * row['share']:.0f} %"]
        + [f"{100 - row[name]['gross_percent']:.1f}, {_number(row[name]['rotation'])}" for name in names]
        for row in rows
    ]
    return [
        "**Outliers**: success in percent, and rotation RMSE over the bound of the inliers.",
        *_grid(["N", "outliers", *names], cells),
    ]


def _swaps(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = _names(rows)
    cells = [
        [f"{2 * row['pairs']} of 16"] + [_number(100 - row[name]["gross_percent"], 1) for name in names]
        for row in rows
    ]
    return [
        "**Points taken for their mirror images**: success in percent.",
        *_grid(["swapped", *names], cells),
    ]


def _refusal(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = _names(rows)
    cells = [
        [str(row["n"])]
        + [f"{row[name]['accepted_percent']:.1f} / {row[name]['refused_percent']:.1f}" for name in names]
        for row in rows
    ]
    return ["**Refusal**: random pixels accepted / good data refused, percent.", *_grid(["N", *names], cells)]


def _photographs(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [
        [
            row["name"], row["status"], _number(row["rms_px"]), _number(row["given_rms_px"]),
            _number(row["rotation_deg"], 3), _number(row["translation_mm"]), _number(row["squared"], 1),
            "yes" if row["inside"] else "no",
        ]
        for row in rows
    ]  # fmt: skip
    head = ["photograph", "status", "our rms, px", "rms of the given pose, px", "rotation, deg", "translation, mm",
            "squared distance", "within 99 % (16.8)"]  # fmt: skip
    return ["**Photographs of a chessboard**: our pose against the calibration's.", *_grid(head, cells)]


def _speed(result: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for part, unit, title in (
        ("single", "ms", "**One problem**, milliseconds: median (10th to 90th percentile), ratio to ours."),
        ("robust", "ms", "**One problem with outliers**, milliseconds."),
        ("batch", "us", "**Batches**, microseconds per problem."),
    ):
        rows = result[part]
        names = _names(row[unit] for row in rows)
        cells = [
            [str(row["n"]), f"{100 * row['share']:.0f} %"] + [_time(row[unit].get(name)) for name in names]
            for row in rows
        ]
        lines += [title, *_grid(["N", "outliers", *names], cells)]
    one, two = (result["threads"][name] for name in ("1 thread", "2 threads"))
    lines.append(f"A batch with one thread: {_time(one)} microseconds per problem; with two: {_time(two)}.")
    memory = result.get("memory")
    if memory:
        lines.append(
            f"{memory['count']:,.0f} problems of 20 points at once: {memory['after'] / 2**30:.2f} GiB, of which "
            f"{memory['before'] / 2**30:.2f} before the call."
        )
    return lines


def _time(row: Mapping[str, float] | None) -> str:
    if row is None:
        return "–"
    low, middle, high = (
        f"{v:,.0f}" if (v := row[k]) >= 100 else f"{v:.3g}" for k in ("p10", "median", "p90")
    )
    return f"{middle} ({low} to {high}), {row['ratio']:.2f}"


def write_figure(result: Mapping[str, Any], out: Path) -> list[Path]:
    """The paths of the tables (.md) and, where there is something to draw, of the figure (.png) beside `out`."""
    files = [out.with_suffix(".md")]
    with atomic_path(files[0]) as temporary:
        temporary.write_text(result["table"] + "\n", encoding="utf-8")
    drawn = [(name, draw) for name, draw in _PANELS if result.get(name)]
    if not drawn:
        return files
    from matplotlib.figure import Figure

    columns = min(len(drawn), 3)
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, draw) in zip(grid, drawn, strict=False):
        draw(axis, result[name])
        axis.grid(alpha=0.3)
    for axis in grid[len(drawn) :]:
        axis.remove()
    files.append(out.with_suffix(".png"))
    with atomic_path(files[1]) as temporary:
        figure.savefig(temporary, dpi=110)
    return files


def _draw_failures(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    names = [name for name in _names(rows) if name != FLOOR]
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    bars = {
        name: [
            _mean(r[name]["avoidable_percent"] for r in rows if r["shape"] == s and name in r) for s in shapes
        ]
        for name in names
    }
    _draw_bars(axis, shapes, bars)
    axis.set(title="avoidable gross failures", ylabel="% of problems, all N and noises")


def _draw_covariances(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    names = [name for name in _names(rows) if name not in (FLOOR, "geopose, not told")]
    bars = {name: [row[name]["rotation"] if name in row else np.nan for row in rows] for name in names}
    _draw_bars(axis, [row["shape"] for row in rows], bars)
    axis.axhline(1, color="black", lw=0.8, ls="--")
    axis.set(title="points of different covariance", ylabel="rotation RMSE / bound")


def _draw_coverage(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        values = [row[level] for level in ("0.5", "0.9", "0.99")]
        axis.plot([50, 90, 99], values, "o-", ms=4, label=f"{row['kind']}, N = {row['n']}")
    axis.plot([50, 99], [50, 99], "k--", lw=0.8)
    axis.set(title="coverage", ylabel="truth inside (%)", xlabel="ellipsoid (%)")
    axis.legend(fontsize=7)


def _draw_success(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    few = [row for row in rows if row["n"] == min(r["n"] for r in rows)]
    for name in _names(few):
        share, success = [100 * r["share"] for r in few], [100 - r[name]["gross_percent"] for r in few]
        axis.plot(
            share, success, "o-", ms=4, label=name, color=_COLORS[name], zorder=3 if name == OURS else 2
        )
    axis.set(title=f"{few[0]['n']} points", ylabel="success (%)", xlabel="outliers (%)", ylim=(0, 102))
    axis.legend(fontsize=7)


def _draw_swaps(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for name in _names(rows):
        success = [100 - r[name]["gross_percent"] for r in rows]
        axis.plot(
            [2 * r["pairs"] for r in rows],
            success,
            "o-",
            ms=4,
            label=name,
            color=_COLORS[name],
            zorder=3 if name == OURS else 2,
        )
    axis.set(title="left and right exchanged", ylabel="success (%)", xlabel="of 16 points", ylim=(0, 102))
    axis.legend(fontsize=7)


def _draw_refusal(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    names = _names(rows)[::-1]
    values = [_mean(row[name]["accepted_percent"] for row in rows) for name in names]
    axis.barh(names, values, color=[_COLORS[name] for name in names], zorder=2)
    axis.set(title="poses given to random pixels", xlabel="%", xlim=(0, 104))


_PANELS: tuple[tuple[str, Callable[[Any, Any], None]], ...] = (
    ("accuracy", _draw_failures),
    ("covariances", _draw_covariances),
    ("coverage", _draw_coverage),
    ("outliers", _draw_success),
    ("swaps", _draw_swaps),
    ("refusal", _draw_refusal),
)


def _draw_bars(axis: Any, groups: Sequence[str], bars: Mapping[str, Sequence[float]]) -> None:
    width = 0.8 / len(bars)
    for k, (name, values) in enumerate(bars.items()):
        place = np.arange(len(groups)) + (k - 0.5 * (len(bars) - 1)) * width
        axis.bar(place, values, width, label=name, color=_COLORS[name], zorder=2)
    axis.set_xticks(range(len(groups)), groups)
    axis.margins(y=0.45)
    axis.legend(fontsize=7, ncols=2, loc="upper center")


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else np.nan
