"""The results file of the BOP challenge: one line per estimated pose."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geopose._io import atomic_path
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import project_to_so3

HEADER = ("scene_id", "im_id", "obj_id", "score", "R", "t", "time")
MM = 1e-3


@dataclass(frozen=True, eq=False)
class BopResult:
    """One estimated pose `cam_from_obj` (metres); `time` in seconds for the whole image, -1 if unknown."""

    scene_id: int
    im_id: int
    obj_id: int
    score: float
    pose: Pose
    time: float = -1.0


def write_results(path: str | Path, results: Iterable[BopResult]) -> Path:
    """The path of the results file: R as 9 row-major numbers, t as 3 in millimetres, separated by spaces.

    Raises:
        ValueError: two lines of one image that differ in time, which the challenge refuses; a pose that is
            not finite.
    """
    rows, times = [], dict[tuple[int, int], float]()
    for r in results:
        image = (r.scene_id, r.im_id)
        if times.setdefault(image, r.time) != r.time:
            raise ValueError(
                f"results: time must be equal for all lines of scene {image[0]}, image {image[1]}; "
                f"got {times[image]} and {r.time}"
            )
        pose = r.pose.numpy()
        if not (np.isfinite(pose.R).all() and np.isfinite(pose.t).all()):
            raise ValueError(f"results: scene {image[0]}, image {image[1]}: the pose is not finite")
        R = " ".join(repr(float(v)) for v in np.ravel(pose.R))
        t = " ".join(repr(float(v)) for v in np.ravel(pose.t) / MM)
        rows.append((r.scene_id, r.im_id, r.obj_id, repr(float(r.score)), R, t, repr(float(r.time))))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(rows)
    return Path(path)


def read_results(path: str | Path) -> list[BopResult]:
    """The lines of a results file, poses in metres, rotations re-orthonormalised.

    Raises:
        ValueError: naming the file and the line that is broken.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a table with commas ({error})") from None
    results = []
    for number, row in enumerate(rows, 1):
        if not row or (number == 1 and row[0].strip() == HEADER[0]):
            continue
        if len(row) != len(HEADER):
            raise ValueError(f"{path}, line {number}: expected {len(HEADER)} columns, got {len(row)}")
        try:
            R, t = (np.array(column.split(), np.float64) for column in row[4:6])
            scene, image, obj = (int(v) for v in row[:3])
            score, time = float(row[3]), float(row[6])
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if R.shape != (9,) or t.shape != (3,) or not (np.isfinite(R).all() and np.isfinite(t).all()):
            raise ValueError(f"{path}, line {number}: expected 9 finite numbers in R and 3 in t")
        pose = Pose(project_to_so3(R.reshape(3, 3)), t * MM)
        results.append(BopResult(scene, image, obj, score, pose, time))
    return results
