"""
A differentiable PnP layer in a training loop
=============================================

:func:`geopose.solve_pnp` takes tensors, and its pose can be differentiated with respect to the pixels, their
covariances, the object's points and the camera. So a network in front of it can be trained by how good the *poses*
are.

Here the network does not even find points. It is given points with errors, and for each of them a number that
has something to do with how bad they are, as blur or contrast would have. Nobody tells it which points are bad.
It has to learn the covariances from the poses alone.
"""

# %%
# A world with good and bad points
# --------------------------------
#
# Each point's error has a standard deviation between 0.3 and 10 pixels; the ``hint`` is its logarithm, up to
# an unknown function.

import matplotlib.pyplot as plt
import torch

from geopose import Camera, Pose, solve_pnp
from geopose.geometry.rotation import random_rotation

generator = torch.Generator().manual_seed(0)
camera = Camera(800.0, 800.0, 319.5, 239.5, (640, 480))
points = torch.rand(14, 3, generator=generator, dtype=torch.float64) - 0.5  # of the object, metres


def batch(count):
    """Poses, noisy pixels (count, 14, 2), hints (count, 14, 1) in [0, 1] and true standard deviations."""
    t = torch.rand(count, 3, generator=generator, dtype=torch.float64) - 0.5
    truth = Pose(random_rotation((count,), generator).double(), t + torch.tensor([0.0, 0.0, 4.0]).double())
    hint = torch.rand(count, 14, 1, generator=generator, dtype=torch.float64)
    sigma = 0.3 + 9.7 * hint**3
    noise = torch.randn(count, 14, 2, generator=generator, dtype=torch.float64)
    return truth, camera.project(truth.apply(points)) + sigma * noise, hint, sigma


# %%
# The network and the layer
# -------------------------
#
# Two small layers turn the hint into the logarithm of a standard deviation. The pose's error is the mean
# distance of the object's points, compared under a logarithm, so that no single pose rules the batch.
# Poses that are not ``ok`` are left out.

network = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).double()
with torch.no_grad():
    network[2].weight *= 0.1
    network[2].bias.fill_(1.0)  # 2.7 pixels for all, to begin with


def pose_error(px, sigma, truth):
    """Mean distance of the points, metres, for each pose (of those with status ok)."""
    cov = sigma[..., None] ** 2 * torch.eye(2, dtype=torch.float64)
    result = solve_pnp(points, px, camera, cov_px=cov)
    good = torch.from_numpy(result.status == "ok")
    return (result.pose.apply(points) - truth.apply(points)).norm(dim=-1).mean(-1)[good]


optimiser = torch.optim.Adam(network.parameters(), lr=0.03)
history = []
for _ in range(120):
    truth, px, hint, _ = batch(96)
    error = pose_error(px, network(hint).exp(), truth)
    loss = torch.log(error).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    history.append(float(error.detach().median()))

# %%
# What it learned
# ---------------
#
# The pose depends only on the *ratios* of the covariances, so the network can learn them up to a factor; the
# curve is scaled to the truth in the figure. The shape is right: it found out which points are bad.

with torch.no_grad():
    truth, px, hint, sigma = batch(1500)
    grid = torch.linspace(0, 1, 100, dtype=torch.float64)[:, None]
    learned, real = network(grid).exp().squeeze(), (0.3 + 9.7 * grid**3).squeeze()
    factor = float((real.log() - learned.log()).mean().exp())
    errors = {
        "all points alike": pose_error(px, torch.full_like(sigma, 2.7), truth),
        "learned": pose_error(px, network(hint).exp() * factor, truth),
        "true standard deviations": pose_error(px, sigma, truth),
    }

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
left.plot(history, color="tab:blue")
left.set(xlabel="step", ylabel="median error of the poses, m", ylim=(0, None))
right.plot(grid, learned * factor, label="learned", color="tab:blue")
right.plot(grid, real, "--", label="truth", color="black")
right.set(xlabel="hint", ylabel="standard deviation, pixels", yscale="log")
right.legend()
plt.show()

for name, error in errors.items():
    print(f"{name:>25}: median error {1000 * float(error.median()):5.1f} mm, status ok for {len(error)}")

# %%
# Where the gradient comes from
# -----------------------------
#
# At the optimum the gradient of the reprojection error with respect to the pose is zero, whatever the inputs.
# Differentiating that sentence gives the derivative of the pose (the implicit function theorem); the iterations
# are not unrolled, so that memory and time are those of one evaluation. Inliers are held fixed. It agrees with
# finite differences:

truth, px, _, sigma = batch(1)
cov = sigma[..., None] ** 2 * torch.eye(2, dtype=torch.float64)
px.requires_grad_()
x = solve_pnp(points, px, camera, cov_px=cov).pose.t[0, 2]
x.backward()
step = torch.zeros_like(px)
step[0, 0, 0] = 1e-3
with torch.no_grad():
    ahead, behind = (solve_pnp(points, px + s, camera, cov_px=cov).pose.t[0, 2] for s in (step, -step))
print(f"implicit {float(px.grad[0, 0, 0]):.8f}, differences {float(ahead - behind) / 2e-3:.8f} m per pixel")
