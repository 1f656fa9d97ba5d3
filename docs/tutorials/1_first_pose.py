"""
Your first pose
===============

A picture of an X-wing goes in; a position, a rotation, and how sure they are come out.

The picture is rendered here, so that the truth is known. The model comes with the package.
"""

# %%
# The picture
# -----------
#
# A camera with a field of view of 50 degrees, a sky full of stars, and the ship somewhere in it.

import matplotlib.pyplot as plt
import numpy as np

import geopose
from geopose.demo import flight, photograph, star_field

ship = geopose.load_cad("xwing")
camera = geopose.Camera.from_fov(np.deg2rad(50), size_wh=(640, 480))
rng = np.random.default_rng(7)
truth = flight(frames=12)[6]  # cam_from_obj
picture = photograph(ship, camera, truth, star_field(rng, camera.size_wh), rng)

plt.figure(figsize=(7, 5.25), layout="constrained")
plt.imshow(picture)
plt.axis("off")
plt.show()

# %%
# The pose
# --------
#
# One call. The first time it loads the model; for many pictures use a
# :class:`geopose.PoseEstimator`, which keeps it.

found = geopose.estimate_pose(picture, ship, camera=camera)

print("status    ", found.status, found.reasons)
print("position  ", found.pose.t.round(2), "m, truly", truth.t.round(2))
print("rotation  ", found.pose.rvec.round(3), "rad, truly", truth.rvec.round(3))
print(f"confidence {found.confidence:.2f}")

# %%
# Look at the status first. Anything but ``ok`` comes with reasons in words, and a pose, if there is
# one, that should not be relied on.
#
# How sure is it?
# ---------------
#
# The covariance is that of a small motion ``(rho, phi)`` of the camera's frame: a turn ``phi`` about the camera, then
# a shift ``rho``. The ship's position moves by ``rho + phi x t``, so that is where its own uncertainty comes from.

from geopose.geometry.rotation import hat

moves = np.hstack([np.eye(3), -hat(found.pose.t)])
position_std = np.sqrt(np.diag(moves @ found.covariance @ moves.T))
rotation_std = np.rad2deg(np.sqrt(np.diag(found.covariance)[3:]))
motion = (truth @ found.pose.inverse()).log()  # leads from the estimate to the truth
print("position, give or take", position_std.round(3), "m; off by", (truth.t - found.pose.t).round(3))
print("rotation, give or take", rotation_std.round(2), "degrees; off by", np.rad2deg(motion[3:]).round(2))
within = motion @ np.linalg.solve(found.covariance, motion)
print(f"squared distance of the truth: {within:.1f}, below 10.6 nine times in ten")

# %%
# Along the line of sight the position is least certain: a ship a little larger and a little farther away would look
# the same.
#
# What did it see?
# ----------------
#
# Every keypoint is a position with a covariance, drawn here at two standard deviations; those that PnP throws out
# would be red. On the right the mesh is drawn at the pose that was found.

from geopose.visualize import draw_keypoints, draw_pose

seen = found.keypoints
points = draw_keypoints(picture, seen["points_px"], seen["cov_px"], seen["inliers"])
drawn = draw_pose(picture, found.model, camera, found.pose)

x0, y0, x1, y1 = found.box
margin = 0.1 * (x1 - x0)
figure, axes = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained")
for axis, image, title in zip(axes, (points, drawn), ("keypoints", "the mesh at the pose"), strict=True):
    axis.imshow(image)
    axis.set(title=title, xlim=(x0 - margin, x1 + margin), ylim=(y1 + margin, y0 - margin))
    axis.axis("off")
plt.show()

# %%
# And where there is no ship?
# ---------------------------

empty = star_field(rng, camera.size_wh)
nothing = geopose.estimate_pose(empty, ship, camera=camera)
print(nothing.status, "--", *nothing.reasons)
