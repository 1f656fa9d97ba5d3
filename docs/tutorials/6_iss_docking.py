"""
ISS docking
===========

A camera looks at the International Space Station. Where is the station in the picture, and how far away? A network
learns the two numbers from labelled pictures; geometry derives them from a pose, and the attitude with them.

``examples/iss_docking.py`` is the full story, and takes the folder of the original data.
"""

# %%
# A set like the original
# -----------------------
#
# Rendered from the station that comes with the package, in the files of the original: ``train.csv``, ``val.csv``,
# ``test.csv`` and pictures. **Cut short here: 64 pictures to train on, not 10,000.**

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import geopose
from geopose.data.iss_docking import DockingDataset, docking_answer, read_labels
from geopose.data.iss_docking_write import read_truth, write_iss_docking
from geopose.docking_report import marked
from geopose.docking_train import DockingModel, DockingOptions, predict, train_docking
from geopose.visualize import sheet

folder = Path(tempfile.mkdtemp())
root = write_iss_docking(folder / "set", counts=(64, 12, 8))
print(*(root / "train.csv").read_text().splitlines()[:4], sep="\n")
print(len(read_labels(root / "train.csv")), "labelled pictures")

# %%
# Learning
# --------
#
# **Cut short here: half a minute instead of half an hour.** The first half of the validation pictures makes the
# uncertainties honest, the second half judges.

options = DockingOptions(minutes=0.5, size=128, workers=1, quiet=True)
model = DockingModel.load(train_docking(root, folder / "iss.geopose", options))
answers = predict(model, root, "test")

# %%
# What it answers
# ---------------
#
# Green is the answer with the range that holds the truth nine times in ten, red the truth. After so short a training
# the ranges are wide, as they should be.

truth = read_truth(root)
labels, poses = truth["test"]
pictures = DockingDataset(root, "test", model.size)
shown = [
    marked(pictures.picture(i), answers, i, (labels.location[i], labels.distance[i]))
    for i in range(len(labels))
]
plt.figure(figsize=(10, 5.2), layout="constrained")
plt.imshow(sheet(shown, columns=4))
plt.axis("off")
plt.show()

# %%
# Geometry
# --------
#
# The same two numbers follow from the pose, which keypoints of the station give: here its named points, seen two
# pixels off, as a keypoint network would see them. Nothing was learned for this, and the attitude comes for free.

camera, station = truth["camera"], geopose.load_cad("iss")
points = np.array(list(station.named_keypoints.values()))
seen = camera.project(poses.apply(points))
seen = seen + np.random.default_rng(0).normal(0, 2, seen.shape)
found = geopose.solve_pnp(points, seen, camera, options=geopose.PnPOptions(noise_px=2.0))
location, distance = docking_answer(found.pose, camera, truth["target"], truth["unit_m"])

off_px = {
    "network": np.linalg.norm(answers.location - labels.location, axis=1),
    "geometry": np.linalg.norm(location - labels.location, axis=1),
}
off_percent = {
    "network": 100 * abs(answers.distance / labels.distance - 1),
    "geometry": 100 * abs(distance / labels.distance - 1),
}
for name in off_px:
    print(f"{name:>9}: {np.median(off_px[name]):6.1f} px, {np.median(off_percent[name]):5.1f} % (medians)")

from geopose.geometry.rotation import geodesic_angle

attitude = np.rad2deg(geodesic_angle(found.pose.R, poses.R))
print(f" attitude: {np.median(attitude):.2f} degrees, from geometry alone")
