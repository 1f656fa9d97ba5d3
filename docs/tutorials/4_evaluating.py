"""
Evaluating on a BOP dataset
===========================

How good is a model? The BOP format is what data sets with known poses come in. A small one is made here, with
the commands that you would use for a large one.
"""

# %%
# A data set
# ----------
#
# Sixteen pictures of the X-wing among other things, from the side of the sphere that the model was trained for.
# This is ``geopose render xwing --count 16 --out DIR ...``; :func:`geopose.cli.main` is that command.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from geopose.cli import main

root = Path(tempfile.mkdtemp()) / "set"
VIEW = "--elevation -45 45 --roll -45 45 --scene-range 90 300 --occluders 0.2".split()
main(["render", "xwing", "--count", "16", "--out", str(root), "--split", "test", "--seed", "5", *VIEW])

print(*sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())[:8], sep="\n")

plt.figure(figsize=(10, 2), layout="constrained")
plt.imshow(plt.imread(root / "sheet.png"))
plt.axis("off")
plt.show()

# %%
# The evaluation
# --------------
#
# ``geopose evaluate DIR --model xwing.geopose --csv results.csv --json figures.json``. Whole pictures go in, and no
# box. Recalls count every pose that was given, as BOP does; ``trusted`` counts what a user gets right who heeds the
# status; ``wrong among ok`` is what he gets wrong. The set was rendered with depth, so that BOP's own average recall,
# the mean of VSD, MSSD and MSPD, is there as well.

from geopose.checkpoint import model_of

csv, figures = root / "results.csv", root / "figures.json"
code = main(
    ["evaluate", str(root), "--model", str(model_of("xwing")), "--csv", str(csv), "--json", str(figures)]
)

# %%
# The same from Python
# --------------------
#
# :func:`geopose.evaluate.evaluate_bop` returns what was printed. ``results.csv`` is what the BOP challenge wants:
# rotation row by row, translation in millimetres.

print(csv.read_text().splitlines()[0])
print(csv.read_text().splitlines()[1][:100], "...")

# %%
# One picture
# -----------
#
# The set is read with :func:`geopose.data.bop.read_bop`; every frame has its picture, its camera and its truth.
# Green is the truth, red the estimate. Green lies on top: where no red is seen, the two coincide, or the estimate has
# left the picture.

import numpy as np

from geopose import PoseEstimator
from geopose.data.bop import read_bop
from geopose.geometry.metrics import add, rotation_error
from geopose.visualize import GREEN, RED, draw_pose

estimator = PoseEstimator.load(model_of("xwing"))
dataset = read_bop(root, "test")
shown = []
for frame in dataset.frames[:4]:
    picture, camera = frame.load()
    truth = frame.instances[0].pose
    found = estimator.estimate(picture, camera)
    drawn = picture
    if found.pose is not None:
        drawn = draw_pose(drawn, estimator.model, camera, found.pose, RED, tint=0)
    drawn = draw_pose(drawn, estimator.model, camera, truth, GREEN, tint=0)
    title = found.status
    if found.pose is not None:
        off = float(add(found.pose, truth, estimator.model.vertices)) / estimator.model.diameter
        turn = np.rad2deg(float(rotation_error(found.pose, truth)))
        title += f", ADD {100 * off:.1f} % of the diameter, {turn:.1f}°"
    shown.append((drawn, title))

figure, axes = plt.subplots(2, 2, figsize=(10, 7.8), layout="constrained")
for axis, (drawn, title) in zip(axes.ravel(), shown, strict=True):
    axis.imshow(drawn)
    axis.set_title(title, fontsize=10)
    axis.axis("off")
plt.show()
