"""Which rotations leave an object looking the same: found in its mesh, discrete and continuous."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from geopose.cad.model import CadModel
from geopose.cad.surface import Surface

Array = NDArray[np.float64]
Motion = tuple[Array, Array]  # R (3, 3), t (3,)
MOST_FOLDS = 36
_STEPS, _SPHERE_STEPS = 720, 64  # of a turn about an axis of symmetry; a sphere has their square
LARGEST_GROUP = 60  # of the icosahedron; cyclic and dihedral groups stay below 2 * MOST_FOLDS


@dataclass(frozen=True, eq=False)
class Symmetries:
    """Rigid motions of the object frame, metres, that leave the object unchanged.

    Attributes:
        discrete: (S, 4, 4), a group, the identity first. With continuous symmetries, what is left beside
            them: at most a turn upside down.
        continuous: (axis (3,) of length one, point (3,) on it) for each axis about which any angle will do:
            one for a solid of revolution, three through one point for a sphere.
    """

    discrete: Array
    continuous: tuple[tuple[Array, Array], ...] = ()

    @classmethod
    def none(cls) -> Symmetries:
        """The symmetries of an object that has none but the identity."""
        return cls(np.eye(4)[None])

    @property
    def is_symmetric(self) -> bool:
        """Whether anything but the identity leaves the object unchanged."""
        return len(self.discrete) > 1 or bool(self.continuous)

    def expand(self, steps: int | None = None) -> Array:
        """All symmetries as a list (S', 4, 4), the identity first: a continuous axis in `steps` turns.

        A sphere gets `steps` ** 2 rotations spread evenly over all of them (`even_rotations`). Without `steps`, 720
        about an axis, so that the nearest is a quarter of a degree off at most, and 64 ** 2 of a sphere.
        """
        if not self.continuous:
            return self.discrete.copy()
        steps = steps or (_STEPS if len(self.continuous) == 1 else _SPHERE_STEPS)
        axis, point = (np.asarray(v, np.float64) for v in self.continuous[0])
        if len(self.continuous) > 1:
            turns = even_rotations(steps**2)
            turns = np.concatenate([np.eye(3)[None], turns[1:]])
        else:
            turns = Rotation.from_rotvec(np.arange(steps)[:, None] * (2.0 * np.pi / steps) * axis).as_matrix()
        around = np.stack([_matrix(R, point - R @ point) for R in turns])
        return (around[None] @ self.discrete[:, None]).reshape(-1, 4, 4)

    def to_json(self) -> dict[str, Any]:
        """Plain lists for JSON: {"discrete": S x 4 x 4, "continuous": [{"axis": [3], "point": [3]}]}."""
        around = [
            {"axis": np.asarray(a).tolist(), "point": np.asarray(p).tolist()} for a, p in self.continuous
        ]
        return {"discrete": self.discrete.tolist(), "continuous": around}

    @classmethod
    def from_json(cls, text: Mapping[str, Any] | str) -> Symmetries:
        """The symmetries that `to_json` wrote, from its dictionary or from the text of it."""
        data: Mapping[str, Any] = json.loads(text) if isinstance(text, str) else text
        discrete = np.asarray(data["discrete"], np.float64)
        if discrete.ndim != 3 or discrete.shape[1:] != (4, 4) or not np.allclose(discrete[0], np.eye(4)):
            raise ValueError(
                f"discrete: got shape {discrete.shape}, expected (S, 4, 4) with the identity first"
            )
        around = tuple(
            (np.asarray(c["axis"], np.float64), np.asarray(c["point"], np.float64))
            for c in data["continuous"]
        )
        return cls(discrete, around)


def find_symmetries(model: CadModel, use_color: bool = True, tolerance: float = 0.015) -> Symmetries:
    """Symmetries of the shape of `model`, and of its colours where it has any; deterministic.

    Args:
        model: the mesh; closed or open, its vertices need not correspond.
        use_color: whether a difference of colour over more than 1 % of the surface breaks a symmetry.
        tolerance: of a mismatch, relative to the diameter.

    Notes:
        Candidates come from the second moments of the surface, whose principal axes every symmetry must
        respect: three half turns when the moments differ; when two of them are equal, turns about the third
        axis by 1/2 to 1/36 and half turns about axes across it; when all are equal (the polyhedral groups),
        starts all over the rotations. Each is registered on the mesh itself (ICP) and then measured by the
        distance from the moved surface to the surface.

        BOP (Hodaň et al., "BOP: Benchmark for 6D Object Pose Estimation", ECCV 2018, and "BOP Challenge
        2020", section 2.3) takes as candidates what has a Hausdorff distance below max(15 mm, 0.1 diameter)
        and lets a person remove those that the eye can resolve. There is no person here, so the limits are
        tighter: no place may be off by more than `tolerance` diameters, unless the whole surface is uneven (a
        scan): up to 12 times the mean mismatch, at most 4.3 times the tolerance. A detail that stands out
        from an otherwise perfect fit breaks the symmetry. The elements found are completed to a group, and
        averaged until they are one to rounding.
    """
    surface = Surface(model, use_color)
    values, axes = np.linalg.eigh(surface.moments)
    equal_low, equal_high = np.diff(values) < 0.12 * values[2]
    check = _Check(surface, tolerance)
    if equal_low and equal_high:
        found = _polyhedral(check, axes.T)
    elif equal_low or equal_high:
        found = _about_axis(check, axes[:, 2] if equal_low else axes[:, 0])
    else:
        found = _close(check, [_turn(axis, np.pi) for axis in axes.T]), ()
    motions, continuous = found
    discrete = np.stack(
        [_matrix(R, surface.size * t + surface.centre - R @ surface.centre) for R, t in motions]
    )
    around = tuple((_upward(u), surface.size * p + surface.centre + 0.0) for u, p in continuous)
    return Symmetries(discrete, around)


class _Check:
    """Whether a motion is a symmetry, by the limits of `find_symmetries`."""

    def __init__(self, surface: Surface, tolerance: float) -> None:
        self.surface, self.tolerance = surface, tolerance

    def __call__(self, R: Array, t: Array, scan: float = 4.3) -> float:
        """Mean mismatch in diameters if (R, t) is a symmetry, else infinity; `scan` stretches the limit."""
        tolerance = self.tolerance
        mean, most, largest = self.surface.mismatch(R, t)
        limit = float(np.clip(12.0 * mean, tolerance, scan * tolerance))
        if mean > 0.67 * tolerance or most > 3.0 * tolerance or largest > limit:
            return np.inf
        return mean if self.surface.repainted(R, t) < 0.01 else np.inf

    def continuous(self, axis: Array, point: Array) -> bool:
        """Whether every turn about the axis is a symmetry: 13 angles that no polygon has in common."""
        for angle in np.pi * ((np.arange(1, 14) * 0.6180339887) % 1.0):
            R = Rotation.from_rotvec(angle * axis).as_matrix()
            if self(R, point - R @ point, scan=1.5) == np.inf:
                return False
        return True


Found = tuple[list[Motion], tuple[Motion, ...]]  # motions, and continuous (axis, point); scaled and centred


def _about_axis(check: _Check, axis: Array) -> Found:
    """Symmetries when only turns about `axis` and half turns across it are possible."""
    surface = check.surface
    quarter = surface.fit(*_turn(axis, 0.5 * np.pi))
    for u, p in ((axis, np.zeros(3)), _axis_of(*quarter)):
        if abs(u @ axis) > 0.95 and check.continuous(u, p):
            return _upside_down(check, u, p), ((u, p),)
    across = front(axis)
    angles = [2.0 * np.pi / n + 0.02 for n in range(2, MOST_FOLDS + 1)]
    flips = [Rotation.from_rotvec(a * axis).apply(across) for a in np.arange(0.013, np.pi, np.pi / 45)]
    starts = [_turn(axis, a) for a in angles] + [_turn(v, np.pi) for v in flips]
    return _close(check, _candidates(surface, starts)), ()


def _polyhedral(check: _Check, axes: Array) -> Found:
    """Symmetries when the moments say nothing about their axes."""
    if all(check.continuous(u, np.zeros(3)) for u in axes):
        return [(np.eye(3), np.zeros(3))], tuple((u, np.zeros(3)) for u in np.eye(3))
    starts = [(R, np.zeros(3)) for R in even_rotations(400)]
    candidates = _candidates(check.surface, starts)
    tried: list[Array] = []
    for R, t in candidates:
        u, p = _axis_of(R, t)
        half_turn = np.trace(R) < -0.99  # about any axis across that of a solid of revolution
        if not half_turn and all(abs(u @ v) < 0.99 for v in tried):
            tried.append(u)
            if check.continuous(u, p):
                return _upside_down(check, u, p), ((u, p),)
    return _close(check, candidates), ()


def _upside_down(check: _Check, axis: Array, point: Array) -> list[Motion]:
    """The identity, and the half turn across a continuous axis if that is a symmetry too."""
    R = _turn(front(axis), np.pi)[0]
    _, t = check.surface.fit(R, point - R @ point)
    middle = point + axis * (axis @ (t - (point - R @ point))) / 2.0
    flip = (R, middle - R @ middle)
    identity = (np.eye(3), np.zeros(3))
    return [identity] if check(*flip) == np.inf else [identity, flip]


def _candidates(surface: Surface, starts: list[Motion], most: int = 24) -> list[Motion]:
    """Distinct motions to which the starts converge on the mesh, the best fits first; never the identity."""
    R, t, mean = surface.fit_coarsely(np.stack([s[0] for s in starts]), np.stack([s[1] for s in starts]))
    kept: list[int] = []
    for k in np.argsort(mean, kind="stable"):
        if mean[k] > 0.04 or len(kept) == most:
            break
        if _angle(R[k], np.eye(3)) > 0.08 and all(_angle(R[k], R[j]) > 0.1 for j in kept):
            kept.append(int(k))
    fitted = [
        motion for k in kept if _angle((motion := surface.fit(R[k], t[k], probes=250))[0], np.eye(3)) > 0.08
    ]
    return sorted(fitted, key=lambda motion: round(surface.mismatch(*motion)[0], 5))


def _close(check: _Check, candidates: list[Motion]) -> list[Motion]:
    """The group of symmetries that candidates generate one after the other, averaged; identity first.

    A candidate must fit about as well as those before it: halfway between two symmetries of a fine polygon
    the mismatch is small too, but not that small.
    """
    group: list[Motion] = [(np.eye(3), np.zeros(3))]
    bar = np.inf
    for start in candidates:
        if _index(start[0], group) is not None:
            continue
        R, t = check.surface.fit(*start)
        mean = check(R, t)
        if mean == np.inf or mean > bar or _index(R, group) is not None:
            continue
        bar = min(bar, 3.0 * mean + 0.002)
        grown = _generate(check, bar, group, (R, t))
        if grown is not None:
            group = grown
    return _ordered(_averaged(group))


def _generate(check: _Check, bar: float, group: list[Motion], new: Motion) -> list[Motion] | None:
    """The group that `new` and `group` generate; None when one fits worse than `bar`."""
    grown = [*group, new]
    generators = grown[1:]
    done = 0
    while done < len(grown):
        for R, t in generators:
            product = (grown[done][0] @ R, grown[done][0] @ t + grown[done][1])
            if _index(product[0], grown) is None:
                if len(grown) >= max(LARGEST_GROUP, 2 * MOST_FOLDS) or not check(*product) <= bar:
                    return None
                grown.append(product)
        done += 1
    return grown


def _averaged(group: list[Motion]) -> list[Motion]:
    """The exact group next to an approximate one.

    With the products known from the nearest elements, every R_g becomes the mean over h of R_gh R_h^-1, which
    squares the error each time (Grove, Karcher, Ruh, "Group actions and curvature", 1974); the centre is the
    mean of the images of one point.
    """
    if len(group) == 1:
        return group
    R = np.stack([motion[0] for motion in group])
    flat = R.reshape(len(R), 9)
    table = np.argmax((R[:, None] @ R[None]).reshape(len(R), len(R), 9) @ flat.T, axis=2)
    for _ in range(8):
        U, _, Vt = np.linalg.svd(np.einsum("ghij,hkj->gik", R[table], R))
        R = U @ Vt
    centre = np.mean([motion[1] for motion in group], axis=0)
    for _ in range(2):
        centre = np.mean([motion[0] @ centre + motion[1] for motion in group], axis=0)
    R[0] = np.eye(3)
    return [(r, centre - r @ centre) for r in R]


def _ordered(group: list[Motion]) -> list[Motion]:
    """By angle, then by axis: the same order on every machine."""

    def key(motion: Motion) -> tuple[float, ...]:
        return (round(_angle(motion[0], np.eye(3)), 3), *(np.round(-_axis_of(*motion)[0], 3) + 0.0))

    return [group[0], *sorted(group[1:], key=key)]


def _index(R: Array, group: list[Motion]) -> int | None:
    """Which element of `group` has the rotation `R`, to within 4 degrees."""
    best = min(range(len(group)), key=lambda k: _angle(R, group[k][0]))
    return best if _angle(R, group[best][0]) < 0.07 else None


def _turn(axis: ArrayLike, angle: float) -> Motion:
    """The rotation by `angle` about an axis through the origin."""
    return Rotation.from_rotvec(angle * np.asarray(axis)).as_matrix(), np.zeros(3)


def _angle(A: Array, B: Array) -> float:
    """Angle between two rotations, radians."""
    return float(np.arccos(np.clip((np.sum(A * B) - 1.0) / 2.0, -1.0, 1.0)))


def _axis_of(R: Array, t: Array) -> Motion:
    """Axis of a rotation, pointing upward, and the point on it nearest to the origin."""
    vector = Rotation.from_matrix(R).as_rotvec()
    axis = _upward(vector / max(float(np.linalg.norm(vector)), 1e-12))
    point = np.linalg.lstsq(np.eye(3) - R, t - axis * (axis @ t), rcond=1e-6)[0].astype(np.float64)
    return axis, point


def _upward(axis: Array) -> Array:
    """The one of `axis` and `-axis` whose largest component is positive."""
    axis = np.where(np.abs(axis) < 1e-12, 0.0, axis)  # no negative zeros
    return axis if axis[np.argmax(np.abs(np.round(axis, 6)))] >= 0.0 else -axis


def front(axis: Array) -> Array:
    """The side of a continuous axis on which training keeps the camera: a unit vector (3,) across it.

    The half plane from the axis in this direction stands for all views that differ by a turn about the axis.
    """
    other = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))])
    return other / np.linalg.norm(other)


def _matrix(R: Array, t: Array) -> Array:
    """(4, 4) homogeneous matrix."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = R, t
    return matrix


def even_rotations(count: int) -> Array:
    """`count` rotation matrices (count, 3, 3) spread evenly: Alexa, "Super-Fibonacci Spirals", CVPR 2022."""
    s = np.arange(count) + 0.5
    r, big = np.sqrt(s / count), np.sqrt(1.0 - s / count)
    alpha, beta = 2.0 * np.pi * s / np.sqrt(2.0), 2.0 * np.pi * s / 1.533751168755204288118041
    quaternions = np.column_stack(
        [r * np.sin(alpha), r * np.cos(alpha), big * np.sin(beta), big * np.cos(beta)]
    )
    return Rotation.from_quat(quaternions).as_matrix()


def mirror_pairs(model: CadModel, keypoints: ArrayLike, reach: float = 0.06) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of `keypoints` (K, 3) that a near mirror symmetry of the shape swaps.

    Left and right of a car look alike in a small crop; a detector may take one for the other. A mirror plane
    counts when 90 % of the reflected surface lies within 5 % of the diameter of the surface; two keypoints
    are a pair when one is reflected to within `reach` diameters of the other, and each is the other's
    nearest.
    """
    surface = Surface(model, use_color=False)
    points = (np.asarray(keypoints, np.float64) - surface.centre) / surface.size
    pairs: set[tuple[int, int]] = set()
    for normal in np.linalg.eigh(surface.moments)[1].T:
        R, t = surface.fit(np.eye(3) - 2.0 * np.outer(normal, normal), np.zeros(3))
        moved = surface.probes @ R.T + t
        if np.percentile(np.linalg.norm(moved - surface.closest(moved)[0], axis=1), 90) > 0.05:
            continue
        distance = np.linalg.norm((points @ R.T + t)[:, None] - points[None], axis=2)
        nearest = distance.argmin(axis=1)
        for i, j in enumerate(nearest):
            if i < j and nearest[j] == i and distance[i, j] < reach:
                pairs.add((i, int(j)))
    return sorted(pairs)
