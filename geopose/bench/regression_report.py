"""What the comparison comes to: rows of figures, a Markdown table, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopose._io import atomic_path
from geopose.bench.common import fill_page
from geopose.bench.regression_data import CONDITIONS, Pictures
from geopose.bench.regression_methods import CEILING, LEARNED, RETRIEVAL
from geopose.visualize import draw_text, save_image, sheet

RIGHT = 0.1  # of the diameter: the ADD below which a pose counts as right
PART = "tables of the benchmark"  # of the page
_BINS = 5
_ORDER = (CEILING, *LEARNED, RETRIEVAL)


def values_of(row: Mapping[str, Any], condition: str, name: str) -> NDArray[np.float64]:
    """The errors (N,) of a method's file under one condition; infinite where there was no answer."""
    stored = row["errors"][condition][name]
    return np.array([np.inf if v is None else v for v in stored], float)


def summarise(row: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a method's file: object, method, size, parameters, images; by condition ("hard" joins all but the
    first) median and 90th percentile of rotation (degrees) and translation (diameters), the share with ADD below a
    tenth of the diameter, and the share answered with confidence. Every picture counts; without an answer the error is
    infinite."""
    out = {key: row.get(key) for key in ("object", "method", "size", "parameters", "images", "minutes")}
    for condition in (*CONDITIONS, "hard"):
        parts = CONDITIONS[1:] if condition == "hard" else (condition,)

        def of(name: str, parts: Sequence[str] = parts) -> NDArray[np.float64]:
            return np.concatenate([values_of(row, part, name) for part in parts])

        figures: dict[str, float] = {}
        for name in ("rotation_deg", "translation"):
            for label, percent in (("median", 50), ("p90", 90)):
                figures[f"{name}_{label}"] = float(np.percentile(of(name), percent, method="higher"))
        figures["add_01d"] = float(np.mean(of("add") < RIGHT))
        figures["found"] = float(np.mean(of("found")))
        out[condition] = figures
    return out


def write_table(results: Mapping[str, Any], path: Path) -> Path:
    """The path of the tables as Markdown: for each object all figures, and the conditions one by one; the errors over
    the size of the training set; what the methods cost."""
    options = results["options"]
    lines = [
        f"{results['machine']}; {options['minutes']:.3g} minutes of training for each method, {options['train']} "
        f"pictures of {options['picture']} pixels to train on, {options['test']} to test on under each condition, seed "
        f"{options['seed']}. Rotation in degrees and translation in percent of the diameter, each median / 90th "
        f"percentile; ADD: share of the pictures below {RIGHT:g} diameters; found: share answered with status ok. "
        "Hard: occluded, far, and new background together.",
        "",
    ]
    full = {
        name: {row["method"]: row for row in entry["methods"] if row["size"] == options["train"]}
        for name, entry in results["objects"].items()
    }
    sides = [
        f"{side}{figure}"
        for side in ("easy: ", "hard: ")
        for figure in ("rotation", "translation", "ADD", "found")
    ]
    for name, rows in full.items():
        lines += [f"**{name}**", "", *_table(sides, {m: _figures(rows[m]) for m in _ORDER})]
        by_condition = {
            m: [_number(rows[m][c]["rotation_deg_median"]) for c in CONDITIONS]
            for m in _ORDER
            if _turns(rows[m])
        }
        lines += [
            f"{name}, median rotation error (degrees) by condition:",
            "",
            *_table(CONDITIONS, by_condition),
        ]
        methods = results["objects"][name]["methods"]
        sizes = sorted({row["size"] for row in methods})
        if len(sizes) > 1:
            by_size = {(row["method"], row["size"]): row for row in methods}
            cells = {
                m: [_number(by_size[m, s]["easy"]["rotation_deg_median"]) for s in sizes]
                for m in _ORDER if _turns(rows[m])
            }  # fmt: skip
            words = f"{name}, easy: median rotation error (degrees) by the number of pictures to train on:"
            lines += [words, "", *_table([str(s) for s in sizes], cells)]
    costs = {m: _costs([rows[m] for rows in full.values()]) for m in _ORDER}
    lines += ["What they cost:", ""]
    lines += _table(("million parameters", "ms per picture", f"pictures seen ({', '.join(full)})"), costs)
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    return path


def _table(columns: Sequence[str], cells: Mapping[str, Sequence[str]]) -> list[str]:
    """The lines of a Markdown table with one line per method, and an empty one."""
    head = [f"| method | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    return [*head, *(f"| {method} | {' | '.join(row)} |" for method, row in cells.items()), ""]


def _turns(row: Mapping[str, Any]) -> bool:
    """Whether a method says how the object is turned."""
    return bool(row["method"] not in LEARNED or LEARNED[row["method"]].attitude)


def _figures(row: Mapping[str, Any]) -> list[str]:
    cells = []
    for condition in ("easy", "hard"):
        f = row[condition]
        cells.append(f"{_number(f['rotation_deg_median'])} / {_number(f['rotation_deg_p90'])}")
        cells.append(f"{_number(100 * f['translation_median'])} / {_number(100 * f['translation_p90'])}")
        cells.append(f"{100 * f['add_01d']:.0f} %" if _turns(row) else "–")
        cells.append(f"{100 * f['found']:.0f} %")
    return cells


def _costs(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Parameters and median seconds of a method, and how often it saw a picture for each object."""
    parameters, seconds = rows[0].get("parameters"), [row["seconds"] for row in rows]
    return [
        f"{parameters / 1e6:.1f}" if parameters else "–",
        _number(1000 * float(np.median(seconds))),
        ", ".join(str(row["images"]) if row.get("images") else "–" for row in rows),
    ]


def _number(value: float) -> str:
    return (f"{value:.3g}" if value < 1000 else f"{value:.0f}") if np.isfinite(value) else "–"


def fill_tables(page: str | Path, table: str | Path, figures: Sequence[str | Path]) -> Path:
    """The path of a Markdown page whose part `PART` now holds the tables in the file `table` and then the figures,
    which are copied to where the page lies. Raises as `fill_page` does."""
    shown = [f"![{Path(figure).stem.replace('_', ' ')}]({Path(figure).name})" for figure in figures]
    fill_page(page, PART, "\n\n".join([Path(table).read_text(encoding="utf-8").strip(), *shown]))
    for figure in map(Path, figures):
        with atomic_path(Path(page).with_name(figure.name)) as temporary:
            temporary.write_bytes(figure.read_bytes())
    return Path(page)


def write_figures(
    results: Mapping[str, Any], shown: Mapping[str, Mapping[str, Pictures]], out: Path
) -> list[Path]:
    """The paths of the figures: pictures of every condition, the errors of every method and condition, and errors over
    the distance from the training views and over the size of the training set."""
    files = [save_image(samples(shown), out / "regression_pictures.jpg")]
    files.append(_errors_figure(results, out / "regression_errors.png"))
    files.append(_distance_figure(results, out / "regression_distance.png"))
    return files


def samples(shown: Mapping[str, Mapping[str, Pictures]], each: int = 3) -> NDArray[np.uint8]:
    """One line per object: some test pictures of each condition."""
    tiles = []
    for sets in shown.values():
        for condition in CONDITIONS:
            count = min(each, len(sets[condition]))
            for row in range(each):
                picture = sets[condition].rgb(row % count)
                tiles.append(draw_text(picture, [condition]) if row == 0 else picture)
    return sheet(tiles, each * len(CONDITIONS))


def _colors() -> dict[str, str]:
    palette = ("#444444", "#0a7d32", "#d9480f", "#9c36b5", "#1971c2", "#b08900")
    return dict(zip(_ORDER, palette, strict=True))


def _errors_figure(results: Mapping[str, Any], path: Path) -> Path:
    """Cumulative shares of pictures over the rotation error, a line per method; columns: easy and hard."""
    from matplotlib.figure import Figure

    objects = results["objects"]
    figure = Figure(figsize=(11, 3.6 * len(objects)), layout="constrained")
    grid = figure.subplots(len(objects), 2, squeeze=False)
    for axes, (name, entry) in zip(grid, objects.items(), strict=True):
        for axis, parts, title in zip(axes, (CONDITIONS[:1], CONDITIONS[1:]), ("easy", "hard"), strict=True):
            for row in _full(results, entry):
                errors = np.sort(np.concatenate([values_of(row, c, "rotation_deg") for c in parts]))
                if np.isfinite(errors).any():
                    share = 100 * np.arange(1, len(errors) + 1) / len(errors)
                    axis.plot(errors, share, color=_colors()[row["method"]], label=row["method"])
            axis.set(
                title=f"{name}, {title}", xscale="log", xlim=(0.1, 180), ylim=(0, 101),
                xlabel="rotation error (degrees)", ylabel="pictures below (%)",
            )  # fmt: skip
            axis.grid(alpha=0.3)
    grid[0, 0].legend(fontsize=8)
    return _saved(figure, path)


def _distance_figure(results: Mapping[str, Any], path: Path) -> Path:
    """Median rotation errors, a line per method: for each object over the distance from the nearest training view, and
    for the first over the number of training pictures."""
    from matplotlib.figure import Figure

    objects = results["objects"]
    columns = 2
    lines = -(-(len(objects) + 1) // columns)
    figure = Figure(figsize=(11, 3.8 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (name, entry) in zip(axes, objects.items(), strict=False):
        for row in _full(results, entry):
            near, error = (values_of(row, "easy", key) for key in ("nearest_deg", "rotation_deg"))
            if not np.isfinite(error).any():
                continue
            order = np.array_split(np.argsort(near), min(_BINS, len(near)))
            x, y = ([np.median(v[i]) for i in order] for v in (near, error))
            axis.plot(x, y, "o-", color=_colors()[row["method"]], label=row["method"], ms=4)
        axis.set(title=f"{name}, easy", xlabel="from the nearest training view (degrees)")
    last, (name, entry) = axes[len(objects)], next(iter(objects.items()))
    for method in _ORDER:
        rows = sorted((r for r in entry["methods"] if r["method"] == method), key=lambda r: r["size"])
        values = [r["easy"]["rotation_deg_median"] for r in rows]
        if np.isfinite(values).any():
            last.plot([r["size"] for r in rows], values, "o-", color=_colors()[method], ms=4)
    sizes = sorted({r["size"] for r in entry["methods"]})
    last.set(title=f"{name}, easy", xlabel="training pictures", xscale="log")
    last.set_xticks(sizes, [str(size) for size in sizes])
    last.minorticks_off()
    for axis in axes[: len(objects) + 1]:
        axis.set(ylabel="median rotation error (degrees)", yscale="log")
        axis.grid(alpha=0.3)
    for axis in axes[len(objects) + 1 :]:
        axis.axis("off")
    axes[0].legend(fontsize=8)
    return _saved(figure, path)


def _full(results: Mapping[str, Any], entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The files of the methods with all training pictures, in order."""
    rows = [row for row in entry["errors"] if row["size"] == results["options"]["train"]]
    return sorted(rows, key=lambda row: _ORDER.index(row["method"]))


def _saved(figure: Any, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return path
