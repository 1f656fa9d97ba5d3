"""What the benchmark of PnP comes to: tables in Markdown, and a figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geopose._io import atomic_path

OURS, FLOOR = "geopose", "maximum likelihood"
_STYLE = {OURS: "#0a7d32", FLOOR: "#444444"}
_PALETTE = ("#d9480f", "#9c36b5", "#1971c2", "#b08900", "#c2255c", "#0b7285")


def tables(result: Mapping[str, Any]) -> str:
    """All parts of the result as Markdown."""
    made: dict[str, Callable[[Any], list[str]]] = {
        "accuracy": _accuracy, "covariances": _covariances, "coverage": _coverage, "outliers": _outliers,
        "swaps": _swaps, "refusal": _refusal, "photographs": _photographs, "speed": _speed,
    }  # fmt: skip
    lines: list[str] = []
    for name, make in made.items():
        if result.get(name) is not None:
            lines += make(result[name])
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
    return "–" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def _names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Contestants, in order of appearance."""
    found: dict[str, None] = {}
    for row in rows:
        found |= dict.fromkeys(name for name, value in row.items() if isinstance(value, Mapping))
    return list(found)


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "**RMSE over the Cramér–Rao bound**, rotation / translation; gross failures left out, counted below."
    ]
    names = _names(rows)
    for shape in dict.fromkeys(row["shape"] for row in rows):
        mine = [row for row in rows if row["shape"] == shape]
        shown = [name for name in names if name in mine[0]]
        cells = [
            [str(row["n"]), f"{row['noise_px']:g}"]
            + [f"{_number(row[name]['rotation'])} / {_number(row[name]['translation'])}" for name in shown]
            for row in mine
        ]
        lines += ["", f"{shape}:", *_grid(["N", "noise, px", *shown], cells)]
    lines.append(
        "**Gross failures / avoidable ones**, percent, worst and mean over all N and noises of a shape:"
    )
    cells = []
    for shape in dict.fromkeys(row["shape"] for row in rows):
        mine = [row for row in rows if row["shape"] == shape]
        line = [shape]
        for name in names:
            values = [[r[name][k] for r in mine if name in r] for k in ("gross_percent", "avoidable_percent")]
            line.append(
                f"{max(values[0]):.1f} / {max(values[1]):.1f}; {np.mean(values[0]):.1f} / {np.mean(values[1]):.2f}"
                if values[0]
                else "–"
            )
        either = [row["either_percent"] for row in mine]
        cells.append([*line, f"{min(either):.1f}; {np.mean(either):.2f}"])
    return lines + _grid(["points", *names, "geopose: truth among its poses, least; mean"], cells)


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
    return f"{row['median']:.3g} ({row['p10']:.3g} to {row['p90']:.3g}), {row['ratio']:.2f}"


def write_figure(result: Mapping[str, Any], out: Path) -> list[Path]:
    """The paths of the tables (.md) and the figure (.png) beside `out`."""
    files = [out.with_suffix(".md")]
    with atomic_path(files[0]) as temporary:
        temporary.write_text(result["table"] + "\n", encoding="utf-8")
    if not (result.get("accuracy") or result.get("outliers") or result.get("coverage")):
        return files
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.2), layout="constrained")
    grid = figure.subplots(2, 3).ravel()
    rows = result.get("accuracy") or []
    for axis, shape in zip(grid[:2], ("box", "planar"), strict=True):
        _lines(axis, [r for r in rows if r["shape"] == shape and r["noise_px"] == 1.0], "rotation")
        axis.set(title=f"{shape}, 1 px", ylabel="rotation RMSE / bound", xlabel="points", ylim=(0.8, 2.0))
    planes = [r for r in rows if r["shape"] == "planar" and r["noise_px"] == 1.0]
    _lines(grid[2], planes, "avoidable_percent")
    grid[2].set(title="planar, 1 px", ylabel="avoidable gross failures (%)", xlabel="points")
    crowd = [r for r in result.get("outliers") or [] if r["n"] == 20]
    for name in _names(crowd):
        share = [100 * r["share"] for r in crowd]
        grid[3].plot(
            share,
            [100 - r[name]["gross_percent"] for r in crowd],
            "o-",
            ms=4,
            label=name,
            **_color(name, crowd),
        )
        grid[4].plot(
            share, [r[name]["rotation"] for r in crowd], "o-", ms=4, label=name, **_color(name, crowd)
        )
    grid[3].set(title="20 points", ylabel="success (%)", xlabel="outliers (%)", ylim=(0, 102))
    grid[4].set(
        title="20 points", ylabel="rotation RMSE / bound of inliers", xlabel="outliers (%)", ylim=(0.8, 3)
    )
    levels = ("0.5", "0.9", "0.99")
    for row in result.get("coverage") or []:
        label = f"{row['kind']}, N = {row['n']}"
        grid[5].plot([50, 90, 99], [row[k] for k in levels], "o-", ms=4, label=label)
    grid[5].plot([50, 99], [50, 99], "k--", lw=0.8)
    grid[5].set(title="coverage", ylabel="truth inside (%)", xlabel="ellipsoid (%)")
    for axis in grid:
        axis.grid(alpha=0.3)
    for axis in (grid[0], grid[3], grid[5]):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    files.append(out.with_suffix(".png"))
    with atomic_path(files[1]) as temporary:
        figure.savefig(temporary, dpi=110)
    return files


def _lines(axis: Any, rows: Sequence[Mapping[str, Any]], value: str) -> None:
    for name in _names(rows):
        axis.plot(
            [r["n"] for r in rows],
            [r[name][value] for r in rows],
            "o-",
            ms=4,
            label=name,
            **_color(name, rows),
        )
    axis.set_xscale("log")
    axis.set_xticks([4, 6, 10, 20, 50], ["4", "6", "10", "20", "50"])


def _color(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if name in _STYLE:
        return {"color": _STYLE[name], "lw": 2.2, "zorder": 3}
    others = [other for other in _names(rows) if other not in _STYLE]
    return {"color": _PALETTE[others.index(name) % len(_PALETTE)]}
