"""
Which way does the car point?
=============================

The heading of a car, asked in three ways on the same pictures: a classifier of four quarters, a network with a
density on the circle, and the heading that follows from a pose.

``examples/car_azimuth.py`` is the full story. **Cut short here: seconds of training instead of an hour, small pictures,
few cars.**
"""

# %%
# Pictures
# --------
#
# Eight made-up cars; two are kept for judging. Each picture comes with its azimuth: 0 sees the front, 90 degrees the
# left side.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import geopose
from geopose.azimuth_report import draw_compass, judge_points
from geopose.azimuth_train import CIRCULAR, CLASSIFIER, train_azimuth
from geopose.data.azimuth import AzimuthDataset, AzimuthOptions, built_in_cars
from geopose.visualize import sheet

folder = Path(tempfile.mkdtemp())
options = AzimuthOptions(size=96, classes=4)
cars = built_in_cars(8, seed=0)
shown = AzimuthDataset(cars, options, seed=1)
pictures = [
    draw_compass(np.ascontiguousarray(shown[i]["image"].transpose(1, 2, 0)), float(shown[i]["azimuth"]))
    for i in range(16)
]
plt.figure(figsize=(9, 2.4), layout="constrained")
plt.imshow(sheet(pictures, columns=8))
plt.axis("off")
plt.show()

# %%
# Two networks
# ------------
#
# The classifier starts from nothing, as the original did; the circular network from features of ImageNet, and it
# says an angle with its concentration.

plans = {
    "classifier": (CLASSIFIER | {"channels": [32, 64, 64, 128], "dense": [256, 64]}, 5e-4),
    "circular": (CIRCULAR, None),
}
scores = {}
for name, (net, rate) in plans.items():
    training = train_azimuth(
        folder / f"{name}.geopose",
        minutes=0.5,
        net=net,
        learning_rate=rate,
        pictures=options,
        cars=cars,
        test_pictures=64,
        workers=1,
        quiet=True,
    )
    scores[name] = training.scores

# %%
# And geometry
# ------------
#
# The named points of the car that comes with the package, each seen two pixels off, through PnP: nothing is learned,
# and the heading is one number of the pose. A network that finds such points is what ``geopose train car`` makes.

car = geopose.load_cad("car")
own = AzimuthDataset([car], options, seed=77)
scores["geometry"] = judge_points(own, car.named_keypoints, 64, noise_px=2.0)

# %%
# The answers
# -----------
#
# On the line is right. Half a minute is next to nothing; the example goes on for as long as it is told. Geometry is no
# rival here but a limit: somebody still has to find the points.

for name, score in scores.items():
    print(
        f"{name:>10}: {100 * score.accuracy(4):5.1f} % in the right quarter, "
        f"median error {np.median(score.errors_deg()):6.1f} degrees"
    )

figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained", sharey=True)
for axis, (name, score) in zip(axes, scores.items(), strict=True):
    axis.plot([-180, 180], [-180, 180], color="0.8")
    axis.plot(np.rad2deg(score.azimuth), np.rad2deg(score.answered), ".", color="tab:blue")
    axis.set(title=name, xlabel="true azimuth, degrees", xticks=(-180, 0, 180), yticks=(-180, 0, 180))
axes[0].set_ylabel("answered")
plt.show()
