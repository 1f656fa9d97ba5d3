"""
Your own CAD part
=================

From an STL file to a model, with every step looked at. A real training takes half an hour; this one is stopped
after some twenty seconds, and the end of the page shows what that is worth.
"""

# %%
# The part
# --------
#
# A bracket of 90 millimetres: a plate, a wall, a rib, and a boss on one side. It is written to a file as a
# CAD program would do it: numbers without a unit.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import trimesh

import geopose

folder = Path(tempfile.mkdtemp())


def block(size, centre):
    mesh = trimesh.creation.box(size)
    mesh.apply_translation(centre)
    return mesh


boss = trimesh.creation.cylinder(radius=11, height=26, sections=48)
boss.apply_translation((26, 0, 13))
bracket = trimesh.util.concatenate(
    [
        block((90, 56, 8), (0, 0, 4)),
        block((8, 56, 60), (-41, 0, 30)),
        block((30, 6, 30), (-25, -14, 20)),
        boss,
    ]
)
_ = bracket.export(folder / "bracket.stl")

# %%
# Units
# -----
#
# STL holds no unit, and a wrong one is the commonest cause of a useless distance. So it must be said; the
# error guesses it.

try:
    geopose.load_cad(folder / "bracket.stl")
except ValueError as error:
    print(str(error).replace(str(folder) + "/", ""))

part = geopose.load_cad(folder / "bracket.stl", unit="mm")
print(f"{len(part.faces)} faces, diameter {1000 * part.diameter:.0f} mm")

# %%
# Symmetries and keypoints
# ------------------------
#
# Both are found in the mesh; ``geopose info bracket.stl --unit mm`` prints them. The rib makes this part
# unsymmetric. Keypoints are places on the surface that can be told apart and are seen from many sides.

symmetries = geopose.find_symmetries(part)
keypoints = geopose.choose_keypoints(part, 16, symmetries)
print("symmetric:", symmetries.is_symmetric)

from geopose.cad.shading import Lighting, Material, encode, shade
from geopose.data.sample import look_at

camera = geopose.Camera.from_fov(np.deg2rad(40), (480, 360))


def view_from(elevation_deg, azimuth_deg, distance):
    """The pose of the part for a camera that looks at its middle."""
    R = look_at(np.deg2rad(elevation_deg), np.deg2rad(azimuth_deg), 0.0)
    return geopose.Pose(R, np.array([0.0, 0.0, distance]) - R @ part.bounds.mean(0))


def lit(pose):
    """The part in plain daylight before white."""
    seen = geopose.render(part, camera, pose)
    points = pose.apply(seen.xyz[seen.mask].astype(float)).astype(np.float32)
    up, some = np.array([0, -1, 0], np.float32), np.full(3, 0.35, np.float32)
    sun = np.array([[-0.5, -0.7, -0.5]], np.float32)
    none = np.zeros((0, 4), np.float32)
    light = Lighting(sun, np.full((1, 3), 0.8, np.float32), up, some, 0.6 * some, none, none[:, :3])
    matt = Material(diffuse=0.9, specular=0.1, shininess=20.0, mirror=0.0, metal=0.0)
    out = np.ones((*seen.mask.shape, 3), np.float32)
    out[seen.mask] = encode(shade(np.full_like(points, 0.6), seen.normal[seen.mask], points, light, matt))
    return (255 * out).astype(np.uint8), seen.depth


figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for axis, azimuth in zip(axes, (35, 215), strict=True):
    pose = view_from(30, azimuth, 0.24)
    image, depth = lit(pose)
    px = camera.project(pose.apply(keypoints))
    x, y = np.rint(px).astype(int).T
    around = np.stack([depth[y + dy, x + dx] for dy in (-2, 0, 2) for dx in (-2, 0, 2)])
    hidden = pose.apply(keypoints)[:, 2] > np.where(around > 0, around, np.inf).max(0) + 0.003
    axis.imshow(image)
    axis.scatter(*px[~hidden].T, s=40, color="tab:red", label="seen")
    axis.scatter(*px[hidden].T, s=40, facecolors="none", edgecolors="tab:red", label="hidden")
    axis.axis("off")
axes[0].legend(loc="lower right")
plt.show()

# %%
# Training pictures
# -----------------
#
# They are made while training and never stored. ``geopose render bracket.stl --unit mm --count 32 --out DIR``
# writes some to look at. The part stands on a table, so it is never seen from below; saying so makes the
# problem smaller.

from geopose.data.picture import SyntheticOptions
from geopose.data.sample import ViewSpace
from geopose.data.synthetic import SyntheticDataset
from geopose.visualize import sheet

table = ViewSpace(elevation_deg=(10, 80), roll_deg=(-30, 30))
crops = SyntheticDataset(part, keypoints, symmetries, SyntheticOptions(view=table), seed=0, kind="crop")
pictures = [np.ascontiguousarray(crops[i]["image"].transpose(1, 2, 0)) for i in range(16)]
plt.figure(figsize=(9, 2.4), layout="constrained")
plt.imshow(sheet(pictures, columns=8))
plt.axis("off")
plt.show()

# %%
# Training
# --------
#
# .. code-block:: sh
#
#    geopose train bracket.stl --unit mm --out bracket.geopose --minutes 30 --elevation 10 80 --roll -30 30
#
# **Cut short here: 0.35 minutes instead of 30.** The last part of every training measures, on fresh pictures,
# what was learned, and stores it with the model.

options = geopose.TrainOptions(
    minutes=0.35, elevation_deg=(10, 80), roll_deg=(-30, 30), workers=1, quiet=True
)
model = geopose.train(part, folder / "bracket.geopose", options)

from geopose.checkpoint import read_metadata

meta = read_metadata(model)
print({name: count for name, count in meta["images"].items()}, "pictures seen")
print(f"within a tenth of the diameter: {100 * meta['figures']['add_01d']:.0f} % of fresh pictures")

# %%
# What twenty seconds are worth
# -----------------------------
#
# Next to nothing, and the model knows it: it refuses. That is what a status is for. What full trainings of
# other objects reached is in :doc:`/accuracy`.

image, _ = lit(view_from(35, 40, 0.3))
found = geopose.PoseEstimator.load(model).estimate(image, camera)
print(found.status, "--", *found.reasons)
