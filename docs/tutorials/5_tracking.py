"""
Tracking an X-wing
==================

In a video the last poses tell where to look next. A tracker carries pose, speed and their covariance through time,
notices when the object is lost, and finds it again.
"""

# %%
# The video
# ---------
#
# A second and a half of flight at 30 frames a second. In the middle the ship is hidden for ten frames by a sky that
# is held before the camera.

import matplotlib.pyplot as plt
import numpy as np

import geopose
from geopose.demo import flight, photograph, star_field

ship = geopose.load_cad("xwing")
camera = geopose.Camera.from_fov(np.deg2rad(50), (480, 360))
rng = np.random.default_rng(3)
sky = star_field(rng, camera.size_wh)
truth = flight(150)[42:87]
hidden = range(20, 30)
video = [
    sky if number in hidden else photograph(ship, camera, pose, sky, rng) for number, pose in enumerate(truth)
]

# %%
# Following it
# ------------
#
# :class:`geopose.Tracker` is given one frame after the other. With the status ``ok`` the pose is the
# filter's, from this frame and the earlier ones. With another status the frame gave nothing to be trusted, and the
# pose is where the motion leads. From the shell: ``geopose track video.mp4 --model xwing.geopose --out out.mp4``.

from geopose.checkpoint import model_of

tracker = geopose.Tracker(geopose.PoseEstimator.load(model_of("xwing")), camera)
answers = [tracker.update(frame, number / 30) for number, frame in enumerate(video)]

print("frames that were searched as a whole:", tracker.searched, "of", len(video))
for number in (0, 10, 20, 21, 22, 25, 30, 31, 40):
    print(f"frame {number:>2}: {answers[number].status:<13}", "; ".join(answers[number].reasons)[:80])

# %%
# Distance through time
# ---------------------
#
# The band is two standard deviations of the tracked distance. It grows while nothing is seen, and there is none once
# the ship is given up.

from geopose.visualize import draw_pose

time = np.arange(len(video)) / 30
known = np.array([a.pose is not None and a.covariance is not None for a in answers])
good = np.array([a.status == "ok" for a in answers])
far = np.array([np.linalg.norm(a.pose.t) if k else np.nan for a, k in zip(answers, known, strict=True)])


def distance_std(answer):
    ray = answer.pose.t / np.linalg.norm(answer.pose.t)
    return np.sqrt(ray @ answer.covariance[:3, :3] @ ray)


band = np.array([2 * distance_std(a) if k else np.nan for a, k in zip(answers, known, strict=True)])
tracked = good | (known & (band < 20))  # without the wild guesses at an empty sky

plt.figure(figsize=(9, 3.6), layout="constrained")
plt.axvspan(time[hidden[0]], time[hidden[-1]], color="0.9", label="hidden")
plt.fill_between(time, far - band, far + band, where=tracked, alpha=0.3, color="tab:blue", label="2 sigma")
plt.plot(time, [np.linalg.norm(p.t) for p in truth], "k--", label="truth")
plt.plot(time[good], far[good], ".", color="tab:green", label="ok")
plt.plot(time[tracked & ~good], far[tracked & ~good], "x", color="tab:red", label="predicted")
plt.xlabel("time, s")
plt.ylabel("distance, m")
near, away = min(np.linalg.norm(p.t) for p in truth), max(np.linalg.norm(p.t) for p in truth)
plt.ylim(near - 6, away + 6)
plt.legend(ncols=5, loc="lower center", fontsize=8)
plt.show()

# %%
# Some frames
# -----------
#
# Green where the status is ``ok``, red where the pose is predicted.

figure, axes = plt.subplots(2, 3, figsize=(10, 5.2), layout="constrained")
for axis, number in zip(axes.ravel(), (0, 14, 20, 21, 32, 44), strict=True):
    answer, picture = answers[number], video[number]
    if tracked[number]:
        color = (60, 220, 120) if answer.status == "ok" else (240, 70, 60)
        picture = draw_pose(picture, ship, camera, answer.pose, color, tint=0)
    axis.imshow(picture)
    axis.set_title(f"frame {number}: {answer.status}", fontsize=10)
    axis.axis("off")
plt.show()

# %%
# What it is worth
# ----------------

from geopose.geometry.metrics import rotation_error, translation_error

for name, frames in {"ok": good, "predicted": tracked & ~good}.items():
    turned = [np.rad2deg(rotation_error(answers[i].pose, truth[i])) for i in np.flatnonzero(frames)]
    moved = [translation_error(answers[i].pose, truth[i]) for i in np.flatnonzero(frames)]
    if turned:
        print(
            f"{name:>9}: {len(turned)} frames, {np.median(turned):.2f} degrees, {np.median(moved):.2f} m (medians)"
        )
