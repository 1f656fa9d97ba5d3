"""A pose compared with the photograph: what is drawn, what the network is taught, and what becomes of its answer."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geopose import compare as module
from geopose.align import keypoint_term
from geopose.cad.guide import CELL, Guide, guide
from geopose.cad.model import CadModel, load_cad
from geopose.cad.render import render
from geopose.cad.symmetry import Symmetries
from geopose.compare import compare
from geopose.data.picture import SyntheticOptions
from geopose.data.synthetic import SyntheticDataset
from geopose.geometry.camera import Camera
from geopose.geometry.metrics import add
from geopose.geometry.pose import Pose
from geopose.nets import build_refiner, refiner_loss
from geopose.nets.losses import pose_nll
from geopose.stages import Reading

CAR = load_cad("car").baked().simplified(1500)
POINTS = np.ascontiguousarray(CAR.vertices[:: len(CAR.vertices) // 15][:16])
PINHOLE = Camera(600.0, 600.0, 319.5, 239.5, (640, 480))
CAMERA = Camera(600.0, 600.0, 319.5, 239.5, (640, 480), (0.1, -0.05, 0, 0))
TRUTH = Pose(cv2.Rodrigues(np.array([1.9, 0.3, 0.2]))[0], np.array([0.3, -0.2, 6.0]) * CAR.diameter)
CROP = (128, 1.5)
NONE = Symmetries(np.eye(4)[None])


def test_a_guide_shows_the_surface_where_the_camera_has_it() -> None:
    view = Camera(700.0, 700.0, 40.0, 70.0, (128, 128))
    drawn, whole = guide(CAR, TRUTH, view), render(CAR, view, TRUTH)
    assert drawn.picture.shape == (128, 128, 6)
    np.testing.assert_array_equal((drawn.picture[..., 3:] > 0).any(-1), whole.mask)
    assert (drawn.picture[~whole.mask] == [128, 128, 128, 0, 0, 0]).all()
    row, column = np.divmod(drawn.cells, 128 // CELL)
    px = view.project(TRUTH.apply(drawn.points))
    np.testing.assert_allclose(px, np.stack([CELL * column + 1, CELL * row + 1], 1), atol=0.02)
    np.testing.assert_array_equal(np.sort(drawn.cells), np.flatnonzero(whole.mask[1::CELL, 1::CELL]))
    low, high = CAR.bounds
    coordinates = (drawn.picture[whole.mask][:, 3:].astype(float) - 128) / 127
    expected = (whole.xyz[whole.mask] - 0.5 * (low + high)) / (0.5 * (high - low))
    np.testing.assert_allclose(coordinates, expected, atol=0.01)


def test_a_part_of_a_guide_is_that_part() -> None:
    """A crop of other proportions shows the same pixels, and numbers its cells row by row."""
    view = Camera(700.0, 700.0, 80.0, 70.0, (160, 128))
    part = view.crop_resize(np.array([31.5, 15.5, 159.5, 111.5]), (128, 96))
    drawn, whole = guide(CAR, TRUTH, part), guide(CAR, TRUTH, view)
    away = np.abs(drawn.picture.astype(int) - whole.picture[16:112, 32:160])
    assert (away > 3).any(-1).mean() < 0.01, "but for rounding at edges"
    row, column = np.divmod(drawn.cells, 128 // CELL)
    px = part.project(TRUTH.apply(drawn.points))
    np.testing.assert_allclose(px, np.stack([CELL * column + 1, CELL * row + 1], 1), atol=0.02)


def test_pairs_teach_where_the_drawn_points_are() -> None:
    options = SyntheticOptions(clutter=0, occluders=0, truncated=0, gross=0, crop_range=(200, 280))
    data = SyntheticDataset(CAR, POINTS, NONE, options, 3, "pair")
    moved = []
    for i in range(6):
        item = data[i]
        assert item["image"].shape == (9, 128, 128)
        assert item["image"].dtype == np.uint8
        drawn = item["drawn"] > 0
        np.testing.assert_array_equal(drawn, (item["image"][6:, 1::CELL, 1::CELL] > 0).any(0))
        assert (item["flow"][:, ~drawn] == 0).all()
        # moved by the flow, the drawn object covers what is seen better: colours of the crop follow it
        flow = item["flow"][:, drawn]
        moved.append(np.abs(flow).max())
        # a rigid motion seen from afar is nearly affine
        row, column = np.nonzero(drawn)
        basis = np.stack([row, column, np.ones_like(row)], 1)
        rest = flow.T - basis @ np.linalg.lstsq(basis, flow.T, rcond=None)[0]
        assert np.abs(rest).mean() < 0.3 * np.abs(flow).mean() + 0.1
        again = data[i]
        assert all(np.array_equal(item[k], again[k]) for k in item)
    assert 0.3 < np.median(moved) < 8


def test_the_refiner_learns_a_flow() -> None:
    torch.manual_seed(0)
    net = build_refiner({"widths": [16, 16, 16]}).train()
    data = SyntheticDataset(CAR, POINTS, NONE, SyntheticOptions(crop_size=64, gross=0), 3, "pair")
    items = [data[i] for i in range(4)]
    batch = {k: torch.from_numpy(np.stack([item[k] for item in items])) for k in items[0]}
    image = batch.pop("image").float() / 255
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        out = net(image)
        assert out.shape == (4, 6, 16, 16)
        loss, parts = refiner_loss(out, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(parts["flow"]))
    assert losses[-1] < 0.6 * losses[0]
    with pytest.raises(ValueError, match="multiple of 16"):
        net(image[:, :6])
    with pytest.raises(ValueError, match="flow"):
        refiner_loss(out[:, :, :8], batch)


def test_the_loss_is_that_of_laplace() -> None:
    out = torch.tensor([0.5, -1.0, 0.3, 0, 0, 0]).view(1, 6, 1, 1)
    targets = pose_targets() | {
        "flow": torch.tensor([1.5, 0.0]).view(1, 2, 1, 1),
        "drawn": torch.ones(1, 1, 1),
    }
    targets["points"] = targets["points"][..., :1, :1]
    laplace = torch.distributions.Laplace(out[0, :2, 0, 0], out[0, 2, 0, 0].exp())
    expected = -laplace.log_prob(targets["flow"][0, :, 0, 0]).sum() - 2 * np.log(2)
    torch.testing.assert_close(refiner_loss(out, targets)[1]["nll"], expected)


def pose_targets(
    turn: tuple[float, ...] = (0.0, 0.0, 0.0), shift: tuple[float, ...] = (0.0, 0.0, 0.0)
) -> dict[str, Tensor]:
    """A cloud of 8 x 8 points 2 to 3 diameters away, seen with a focal length of 30 cells, moved about its centre."""
    rng = np.random.default_rng(5)
    points, centre = rng.uniform(-0.5, 0.5, (3, 64)), np.array([0.1, -0.2, 2.5])
    R = cv2.Rodrigues(np.array(turn))[0]
    was, now = points + centre[:, None], R @ points + (centre + shift)[:, None]
    flow = 30 * (now[:2] / now[2] - was[:2] / was[2])
    parts = {"points": points.reshape(3, 8, 8), "centre": centre, "turn": R, "shift": np.array(shift)}
    parts |= {"focal": np.array(30.0), "flow": flow.reshape(2, 8, 8), "drawn": np.ones((8, 8))}
    return {k: torch.from_numpy(v)[None].float() for k, v in parts.items()}


PRIOR = 1 / np.array([0.15, 0.15, 0.15 * 2.5, 0.25, 0.25, 0.25]) ** 2


def test_where_nothing_is_drawn_the_pose_has_its_prior() -> None:
    turn, shift = (0.1, -0.2, 0.05), (0.02, 0.01, -0.1)
    targets = pose_targets(turn, shift) | {"drawn": torch.zeros(1, 8, 8)}
    expected = np.sqrt(6 * (PRIOR * np.array([*shift, *turn]) ** 2).sum()) - 0.5 * np.log(PRIOR).sum()
    np.testing.assert_allclose(pose_nll(torch.zeros(1, 6, 64), targets).numpy(), [expected], rtol=1e-4)


def test_the_information_is_that_of_the_projection() -> None:
    """At the truth, with a zero flow, all that is left is the determinant; its Jacobian by differences."""
    targets = pose_targets()
    out = torch.zeros(1, 6, 64)
    out[:, 2], out[:, 3], out[:, 4], out[:, 5] = -1.0, 0.2, 0.3, -0.1
    W = np.exp(1.0) / np.sqrt(2 * 64 / 24) * np.array([[np.exp(0.2), 0], [0.3, np.exp(-0.1)]])
    points, centre = (targets[k][0].double().numpy().reshape(3, -1) for k in ("points", "centre"))

    def seen(xi: np.ndarray) -> np.ndarray:
        moved = cv2.Rodrigues(xi[3:])[0] @ points + centre + xi[:3, None]
        return (W @ (30 * moved[:2] / moved[2])).ravel()

    J = np.stack([(seen(1e-5 * e) - seen(-1e-5 * e)) / 2e-5 for e in np.eye(6)], 1)
    expected = 0.01 - 0.5 * np.linalg.slogdet(J.T @ J + np.diag(PRIOR))[1]
    np.testing.assert_allclose(pose_nll(out, targets).numpy(), [expected], rtol=1e-5)


def test_the_right_flow_is_the_likeliest() -> None:
    targets = pose_targets((0.1, -0.15, 0.05), (0.02, 0.01, -0.1))
    out = torch.zeros(1, 6, 64)
    out[:, :2], out[:, 2] = targets["flow"].flatten(2), -2.0
    right = pose_nll(out, targets)
    for factor in (0.8, 1.2):  # shared by all cells
        wrong = out * torch.tensor([factor, factor, 1, 1, 1, 1])[:, None]
        assert pose_nll(wrong, targets) > right + 1
    out.requires_grad_()
    pose_nll(1.1 * out, targets).sum().backward()
    assert out.grad is not None
    assert torch.isfinite(out.grad).all()
    assert (out.grad[:, :2] != 0).any()
    assert (out.grad[:, 2] == 0).all()  # b belongs to the flow


def test_a_refiner_of_flow_alone_is_read() -> None:
    net = build_refiner({"widths": [16, 16, 16]}).eval()
    state = net.state_dict()
    state |= {k: state[k][:3] for k in ("head.weight", "head.bias")}
    other = build_refiner({"widths": [16, 16, 16]}).eval()
    other.load_state_dict(state, strict=True)
    x = torch.rand(1, 9, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(other(x)[:, :3], net(x)[:, :3])
        assert (other(x)[:, 3:] == 0).all()


class Oracle(nn.Module):
    """Knows the flow to `truth`, up to `noise` crop pixels, from what was drawn last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, truth: Pose, noise: float = 0.0) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        self.truth, self.noise, self.rng, self.calls = truth, noise, np.random.default_rng(0), 0
        self.shapes: list[tuple[int, int]] = []
        monkeypatch.setattr(module, "guide", self.guide)

    def guide(self, model: CadModel, pose: Pose, view: Camera) -> Guide:
        self.drawn, self.pose, self.view = guide(model, pose, view), pose, view
        return self.drawn

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[:2] == (1, 9)
        self.calls += 1
        points = self.drawn.points
        flow = self.view.project(self.truth.apply(points)) - self.view.project(self.pose.apply(points))
        flow = flow + self.rng.normal(0, self.noise, flow.shape)
        self.shapes.append(tuple(x.shape[2:]))
        rows, columns = (side // CELL for side in x.shape[2:])
        out = torch.zeros(1, 6, rows * columns)
        out[0, :2, self.drawn.cells] = torch.from_numpy((flow / CELL).T).float()
        out[:, 2] = np.log(max(self.noise, 0.1) / CELL)
        return out.view(1, 6, rows, columns)


def started(seed: int, camera: Camera = CAMERA) -> tuple[Pose, Reading, np.ndarray]:
    """A pose some percent off, keypoints as far off, and a picture in which nothing matters."""
    rng = np.random.default_rng(seed)
    step = np.concatenate([rng.normal(0, [0.02, 0.02, 0.15]) * CAR.diameter, rng.normal(0, 0.05, 3)])
    points = camera.project(TRUTH.apply(POINTS)) + rng.normal(0, 1.5, (16, 2))
    cov = np.broadcast_to(2.25 * np.eye(2), (16, 2, 2))
    reading = Reading(points, cov, np.ones((32, 32), np.float32), np.array([0.0, 0, 100, 100]))
    about = Pose(np.eye(3), TRUTH.t) @ Pose.exp(step) @ Pose(np.eye(3), -TRUTH.t)
    return about @ TRUTH, reading, np.zeros((480, 640, 3), np.uint8)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("camera", [PINHOLE, CAMERA], ids=["pinhole", "distorted"])
def test_a_known_flow_leads_to_the_truth(
    seed: int, camera: Camera, tight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, reading, picture = started(seed, camera)
    term = keypoint_term(POINTS, reading, np.ones(16, bool), camera)
    before = float(add(start, TRUTH, CAR.vertices)) / CAR.diameter
    oracle = Oracle(monkeypatch, TRUTH)
    found = compare(oracle, picture, camera, start, CAR, term, CROP, tight)
    assert oracle.shapes[0] == (128, 128)
    if tight:  # the car is longer than high
        assert all(h % 16 == w % 16 == 0 and h < w <= 256 for h, w in oracle.shapes[1:])
    else:
        assert all(h == w for h, w in oracle.shapes)
    after = float(add(found.pose, TRUTH, CAR.vertices)) / CAR.diameter
    assert after < 0.1 * before
    assert after < 0.005
    assert found.agreement > 0.9
    assert found.covariance is not None
    assert np.linalg.eigvalsh(found.covariance).min() > 0


def test_a_wrong_pose_does_not_agree_and_an_unseen_one_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    start, reading, picture = started(0)
    term = keypoint_term(POINTS, reading, np.ones(16, bool), CAMERA)
    turned = Pose(TRUTH.R @ cv2.Rodrigues(np.array([0, 0, 0.5]))[0], TRUTH.t)
    monkeypatch.setattr("geopose.compare._FINER", (1.0,))
    found = compare(Oracle(monkeypatch, turned), picture, CAMERA, start, CAR, term, CROP)
    assert found.agreement < 0.5
    behind = Pose(TRUTH.R, -TRUTH.t)
    oracle = Oracle(monkeypatch, TRUTH)
    found = compare(oracle, picture, CAMERA, behind, CAR, term, CROP)
    assert oracle.calls == 0
    assert found.pose is behind
    assert found.covariance is None
    assert found.agreement == 0


def test_points_that_do_not_project_do_not_agree() -> None:
    """Half of them lie behind the camera: they count as wrong, the others as they are."""
    points = np.random.default_rng(0).uniform(-1, 1, (40, 3))
    points[:, 2] = np.where(np.arange(40) % 2, 5, -5)
    at = Pose(np.eye(3), np.zeros(3))
    place = np.nan_to_num(PINHOLE.project(points)).T
    flow = module._Flow(None, points, PINHOLE, place, np.full(40, 0.1), 5.0)
    assert flow.agreement(at) == pytest.approx(0.5, abs=1e-6)
    lost = replace(flow, place=np.full_like(place, np.nan))
    assert lost.agreement(at) == 0


def test_a_pose_that_does_not_agree_after_a_step_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is never sure of its flow is asked twice, of four times."""

    class Unsure(Oracle):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            out[:, 0] += (-1.0) ** self.calls
            out[:, 2] = 3.0
            return out

    start, reading, picture = started(0)
    term = keypoint_term(POINTS, reading, np.ones(16, bool), CAMERA)
    oracle = Unsure(monkeypatch, TRUTH)
    found = compare(oracle, picture, CAMERA, start, CAR, term, CROP)
    assert oracle.calls == 2
    assert found.agreement < 0.1


def test_a_pose_that_led_to_a_worse_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is half a cell wrong about the truth once, and then agrees with nothing."""

    class WrongOnce(Oracle):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            out[:, 0] += 0.5
            out[:, 2] = -1.0 if self.calls == 1 else 3.0
            return out

    _, reading, picture = started(0)
    term = keypoint_term(POINTS, reading, np.ones(16, bool), CAMERA)
    found = compare(WrongOnce(monkeypatch, TRUTH), picture, CAMERA, TRUTH, CAR, term, CROP)
    assert found.covariance is None
    assert found.agreement < 0.01
    np.testing.assert_array_equal(found.pose.matrix, TRUTH.matrix)


def test_a_pose_that_moves_less_than_it_is_uncertain_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    _, reading, picture = started(0)
    term = keypoint_term(POINTS, reading, np.ones(16, bool), CAMERA)
    exact = Oracle(monkeypatch, TRUTH, 0.0)
    compare(exact, picture, CAMERA, TRUTH, CAR, term, CROP)
    assert exact.calls == 2  # never after the first, which the keypoints hold
    monkeypatch.setattr("geopose.compare._STILL", 0.0)
    restless = Oracle(monkeypatch, TRUTH, 0.0)
    compare(restless, picture, CAMERA, TRUTH, CAR, term, CROP)
    assert restless.calls == 4


def test_more_noise_is_less_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    _, reading, picture = started(0)
    term = keypoint_term(POINTS, reading, np.ones(16, bool), replace(CAMERA))
    said = [
        compare(Oracle(monkeypatch, TRUTH, noise), picture, CAMERA, TRUTH, CAR, term, CROP).agreement
        for noise in (0.1, 1.0, 4.0)
    ]
    assert said[0] > 0.95
    assert said[0] > said[1] > said[2]
