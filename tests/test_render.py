"""The rasteriser against an independent ray caster, against projection, and at its borders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from geopose.cad.guide import guide
from geopose.cad.model import CadModel, CadWarning, load_cad
from geopose.cad.render import clip_near, rasterize, render
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose


@pytest.fixture(scope="module")
def blob() -> CadModel:
    """A coloured, lopsided thing of two parts, 0.3 m across."""
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.1)
    ball.vertices *= [1.0, 0.6, 0.8]
    box = trimesh.creation.box((0.08, 0.05, 0.2))
    box.apply_translation((0.05, 0.02, 0.1))
    mesh = trimesh.util.concatenate([ball, box])
    mesh.visual.vertex_colors = np.random.default_rng(0).integers(0, 255, (len(mesh.vertices), 4))
    return CadModel.from_trimesh(mesh, "blob")


def cast(model: CadModel, camera: Camera, pose: Pose) -> np.ndarray:
    """(H, W) depth by trimesh's ray caster, 0 where nothing is hit."""
    width, height = camera.size_wh
    mesh = trimesh.Trimesh(pose.apply(model.vertices), model.faces, process=False)
    y, x = np.mgrid[:height, :width]
    px = np.stack([x.ravel(), y.ravel()], axis=1).astype(float)
    rays = np.asarray(camera.unproject(px))
    hits, ray, _ = mesh.ray.intersects_location(np.zeros_like(rays), rays, multiple_hits=False)
    depth = np.zeros(len(rays))
    depth[ray] = hits[:, 2]
    return depth.reshape(height, width)


def pose_of(seed: int, distance: float = 0.6) -> Pose:
    R = Rotation.random(random_state=seed).as_matrix()
    return Pose(R, np.array([0.03, -0.02, distance]))


@pytest.mark.parametrize(
    "camera",
    [
        Camera(160.0, 160.0, 63.5, 47.5, (128, 96)),
        Camera(150.0, 190.0, 41.3, 70.8, (97, 130)),  # oblong pixels, shifted centre, odd and portrait sizes
        Camera(90.0, 90.0, -5.0, 30.0, (64, 64)),  # centre outside
    ],
)
def test_depth_and_mask_agree_with_a_ray_caster(blob: CadModel, camera: Camera) -> None:
    for seed in range(3):
        pose = pose_of(seed)
        truth, seen = cast(blob, camera, pose), render(blob, camera, pose)
        assert truth.any()
        assert np.count_nonzero((truth > 0) != seen.mask) <= 0.002 * np.count_nonzero(truth)
        both = (truth > 0) & seen.mask
        difference = np.abs(truth - seen.depth)[both]
        assert np.median(difference) < 1e-6
        # At inner silhouettes a pixel may see the other surface.
        assert np.mean(difference > 1e-4) < 0.005


@pytest.mark.parametrize("diameters", [5.0, 20.0, 100.0])
def test_what_is_behind_does_not_show_through_from_afar(blob: CadModel, diameters: float) -> None:
    camera = Camera(100 * diameters, 100 * diameters, 63.5, 47.5, (128, 96))
    for seed in range(3):
        pose = Pose(pose_of(seed).R, np.array([0, 0, diameters * blob.diameter]))
        truth, seen = cast(blob, camera, pose), render(blob, camera, pose).depth
        both = (truth > 0) & (seen > 0)
        assert both.sum() > 500
        assert (np.abs(truth - seen)[both] > 1e-3 * blob.diameter).mean() < 0.005


def test_object_coordinates_project_onto_their_own_pixel(blob: CadModel) -> None:
    camera, pose = Camera(150.0, 190.0, 41.3, 70.8, (97, 130)), pose_of(5)
    seen = render(blob, camera, pose)
    y, x = np.nonzero(seen.mask)
    px = np.asarray(camera.project(pose.apply(seen.xyz[seen.mask].astype(float))))
    assert np.abs(px - np.stack([x, y], axis=1)).max() < 0.51  # the half pixel
    assert np.abs(px - np.stack([x, y], axis=1)).mean() < 0.01
    np.testing.assert_allclose(
        pose.apply(seen.xyz[seen.mask].astype(float))[:, 2], seen.depth[seen.mask], atol=1e-5
    )


def test_normals_are_unit_and_face_the_camera(blob: CadModel) -> None:
    camera, pose = Camera(160.0, 160.0, 63.5, 47.5, (128, 96)), pose_of(2)
    seen = render(blob, camera, pose)
    points = pose.apply(seen.xyz[seen.mask].astype(float))
    normals = seen.normal[seen.mask]
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    assert (np.einsum("ni,ni->n", normals, points) <= 1e-6).all()


def test_a_known_square_covers_the_pixels_whose_centres_lie_in_it() -> None:
    corners = np.array([[-0.1, -0.1, 0], [0.1, -0.1, 0], [0.1, 0.1, 0], [-0.1, 0.1, 0]])
    mesh = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)
    mesh.visual.vertex_colors = np.tile([255, 128, 0, 255], (4, 1))
    with pytest.warns(CadWarning, match="open|hole|closed|edge|watertight"):
        model = CadModel.from_trimesh(mesh, "square")
    # 100 px per 0.1 m at 1 m: the square spans 20.25 .. 40.25 in x and 9.75 .. 29.75 in y.
    seen = render(model, Camera(100.0, 100.0, 30.25, 19.75, (64, 48)), Pose(np.eye(3), np.array([0, 0, 1.0])))
    y, x = np.nonzero(seen.mask)
    assert (x.min(), x.max(), y.min(), y.max()) == (21, 40, 10, 29)
    np.testing.assert_allclose(seen.depth[seen.mask], 1, atol=1e-6)
    np.testing.assert_allclose(seen.color[seen.mask], np.tile([1, 128 / 255, 0], (len(x), 1)), atol=1e-6)
    assert (seen.color[~seen.mask] == 0).all()


def test_texture_is_looked_up_at_the_right_place() -> None:
    corners = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    texture = np.zeros((2, 2, 3), np.uint8)
    texture[0, 0], texture[0, 1], texture[1, 0], texture[1, 1] = (
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [9, 9, 9],
    )
    uv = np.array([[0.0, 1], [1, 1], [1, 0], [0, 0]], np.float32)  # image top (y = -1) is v = 1
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    normals = np.tile([0.0, 0, -1], (4, 1)).astype(np.float32)
    model = CadModel("poster", corners, faces, normals, uv=uv, texture=texture)
    seen = render(model, Camera(8.0, 8.0, 7.5, 7.5, (16, 16)), Pose(np.eye(3), np.array([0, 0, 1.0])))
    np.testing.assert_allclose(seen.color[4, 4], [1, 0, 0], atol=0.15)
    np.testing.assert_allclose(seen.color[4, 11], [0, 1, 0], atol=0.15)
    np.testing.assert_allclose(seen.color[11, 4], [0, 0, 1], atol=0.15)


def test_triangles_through_the_near_plane_are_cut_not_lost(blob: CadModel) -> None:
    floor = trimesh.Trimesh(
        [[-5.0, 0.5, -5], [5, 0.5, -5], [5, 0.5, 5], [-5, 0.5, 5]], [[0, 1, 2], [0, 2, 3]], process=False
    )
    with pytest.warns(CadWarning, match="open|hole|closed|edge|watertight"):
        model = CadModel.from_trimesh(floor, "floor")
    camera, here = Camera(50.0, 50.0, 31.5, 31.5, (64, 64)), Pose(np.eye(3), np.zeros(3))
    seen = render(model, camera, here)
    y, _ = np.nonzero(seen.mask)
    assert seen.mask[40:].all()  # the floor fills what is below the horizon and nearer than its far edge
    assert y.min() == 37  # f * 0.5 / 5 = 5 px below the centre of 31.5
    rows = np.arange(40, 64)
    np.testing.assert_allclose(seen.depth[rows, 32], 0.5 * 50 / (rows - 31.5), rtol=1e-5)


def test_clipping_keeps_the_part_in_front() -> None:
    triangle = np.array([[[0.0, 0, 2], [1, 0, 2], [0, 0, -2]]])
    parts, origin = clip_near(triangle, 1.0)
    assert (parts[..., 2] >= 1 - 1e-9).all()
    assert (origin == 0).all()
    area = 0.5 * np.linalg.norm(np.cross(parts[:, 1] - parts[:, 0], parts[:, 2] - parts[:, 0]), axis=1).sum()
    assert area == pytest.approx(
        2.0 * (1 - 0.75**2)
    )  # the whole has area 2; a similar triangle of 3/4 is behind
    behind, _ = clip_near(triangle - [0, 0, 10], 1.0)
    assert len(behind) == 0


def test_distortion_moves_the_picture_as_projection_says() -> None:
    ball = CadModel.from_trimesh(trimesh.creation.icosphere(subdivisions=4, radius=0.1), "ball")
    camera = Camera(160.0, 160.0, 63.5, 47.5, (128, 96), (-0.2, 0.05, 0.002, -0.001))
    pose = Pose(pose_of(1).R, np.array([0.12, 0.08, 0.6]))
    seen = render(ball, camera, pose)
    y, x = np.nonzero(seen.mask)
    assert len(x) > 1000
    px = np.asarray(camera.project(pose.apply(seen.xyz[seen.mask].astype(float))))
    assert np.abs(px - np.stack([x, y], axis=1)).max() < 0.5
    straight = np.asarray(
        replace(camera, distortion=()).project(pose.apply(seen.xyz[seen.mask].astype(float)))
    )
    assert np.abs(straight - np.stack([x, y], axis=1)).max() > 1  # the distortion is not nothing


def brick(size: float = 1.0) -> CadModel:
    return CadModel.from_trimesh(trimesh.creation.box((0.2 * size, 0.3 * size, 0.5 * size)), "brick")


def ring() -> CadModel:
    """0.4 m from its middle to its outside."""
    return CadModel.from_trimesh(trimesh.creation.torus(0.3, 0.1), "ring")


def turned(rvec: tuple[float, ...], t: tuple[float, ...]) -> Pose:
    return Pose.from_rvec_tvec(np.array(rvec), np.array(t))


@pytest.mark.parametrize("distortion", [(-0.3, 0, 0, 0), (-0.3, 0, 0.02, -0.03), (0.3, 0, 0, 0)])
@pytest.mark.parametrize(
    ("model", "pose", "wrong"),
    [
        (brick(), turned((0.3, 0.5, 0.2), (1.2, -0.03, 0.6)), 0),
        (brick(), turned((0.3, 0.5, 0.2), (0.02, 0.03, 0.0)), 0),  # the camera is inside
        (brick(10), turned((0.3, 0.5, 0.2), (0.1, 0.2, 0.3)), 0),
        (ring(), turned((0.3, 0.5, 0.2), (0.02, -0.03, 0.4)), 4),
        (ring(), turned((0.0, 0.0, 0.0), (0.02, 0.0, 0.05)), 0),  # in the hole
        (ring(), turned((0.6, 0.4, 0.0), (0.02, 0.0, 0.0)), 2),
    ],
)
def test_what_lies_beyond_the_fold_of_the_distortion_leaves_no_ghosts(
    model: CadModel, pose: Pose, wrong: int, distortion: tuple[float, ...]
) -> None:
    camera = Camera(120, 110, 50, 45, (96, 80), distortion)
    truth, seen = cast(model, camera, pose), render(model, camera, pose)
    assert np.count_nonzero((truth > 0) != seen.mask) <= wrong
    both = (truth > 0) & seen.mask
    assert np.count_nonzero(np.abs(truth - seen.depth)[both] > 1e-3 * model.diameter) <= 0.015 * both.size


def test_pixels_beyond_the_fold_of_the_distortion_stay_empty() -> None:
    """A point at radius r is seen at r - 0.3 r^3, which is never above 0.70: the picture reaches 1.4."""
    camera = Camera(45, 45, 50, 45, (96, 80), (-0.3, 0, 0, 0))
    y, x = np.mgrid[:80, :96]
    radius = np.hypot(x - 50, y - 45) / 45
    fold = 2 / 3 / np.sqrt(0.9)
    seen = render(brick(10), camera, turned((0.3, 0.5, 0.2), (0.1, 0.2, 0.3)))
    assert not seen.mask[radius > fold].any()
    assert seen.mask[radius < 0.98 * fold].all()
    assert np.isfinite(seen.depth).all()


def test_poses_are_a_batch_and_each_is_drawn_alone(blob: CadModel) -> None:
    camera = Camera(80.0, 80.0, 31.5, 31.5, (64, 64))
    poses = [pose_of(i) for i in range(4)]
    both = Pose(
        np.stack([p.R for p in poses]).reshape(2, 2, 3, 3), np.stack([p.t for p in poses]).reshape(2, 2, 3)
    )
    seen = render(blob, camera, both)
    assert seen.depth.shape == (2, 2, 64, 64)
    assert seen.xyz.shape == (2, 2, 64, 64, 3)
    np.testing.assert_array_equal(seen.depth[1, 0], render(blob, camera, poses[2]).depth)
    none = render(blob, camera, Pose.identity((0, 3)))
    assert none.color.shape == none.normal.shape == none.xyz.shape == (0, 3, 64, 64, 3)
    assert none.depth.shape == none.mask.shape == (0, 3, 64, 64)
    assert [getattr(none, k).dtype for k in ("color", "mask")] == [np.float32, np.bool_]


def test_nothing_in_view_gives_empty_pictures(blob: CadModel) -> None:
    camera = Camera(80.0, 80.0, 31.5, 31.5, (64, 64))
    assert not render(blob, camera, Pose(np.eye(3), np.array([0, 0, -2.0]))).mask.any()
    assert not render(blob, camera, Pose(np.eye(3), np.array([50.0, 0, 1.0]))).mask.any()


def test_bad_input_is_named(blob: CadModel) -> None:
    camera = Camera(80.0, 80.0, 31.5, 31.5, (64, 64))
    with pytest.raises(ValueError, match="cam_from_obj"):
        render(blob, camera, Pose(np.eye(3), np.array([0, np.nan, 1.0])))
    with pytest.raises(ValueError, match="cam_from_obj: expected a Pose, got ndarray"):
        render(blob, camera, np.eye(4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="camera: expected a Camera, got ndarray"):
        render(blob, np.eye(3), pose_of(0))  # type: ignore[arg-type]
    batch = Camera(np.array([80.0, 90.0]), 80.0, 31.5, 31.5, (64, 64))
    with pytest.raises(ValueError, match=r"camera: expected one camera, got a batch \(2,\)"):
        render(blob, batch, pose_of(0))
    with pytest.raises(ValueError, match=r"camera: expected one camera, got a batch \(2,\)"):
        rasterize(blob.vertices, blob.faces, replace(camera, distortion=np.zeros((2, 4))), near=0.01)
    with pytest.raises(ValueError, match="near"):
        rasterize(blob.vertices, blob.faces, camera, near=0.0)


def test_a_heavy_built_in_object_is_drawn() -> None:
    model = load_cad("xwing")
    pose = Pose(Rotation.from_euler("xyz", [100, 10, 30], degrees=True).as_matrix(), np.array([0, 0, 30.0]))
    seen = render(model, Camera.from_fov(1.0, (160, 120)), pose)
    assert 300 < seen.mask.sum() < 10000
    assert len(np.unique(np.round(seen.color[seen.mask], 1), axis=0)) > 5


def test_meshes_that_must_not_be_written_to_are_drawn() -> None:
    """Memory-mapped or shared arrays are read-only, and a rotation may be another's transpose."""
    model, camera = load_cad("xwing"), Camera.from_fov(np.deg2rad(50), (96, 80))
    pose = Pose(np.eye(3).T[[1, 2, 0]].T, np.array([0.0, 0.0, 30.0]))
    locked = {}
    for name in ("vertices", "faces", "colors"):
        locked[name] = np.array(getattr(model, name))
        locked[name].setflags(write=False)
    same = replace(model, **locked)
    np.testing.assert_array_equal(render(same, camera, pose).color, render(model, camera, pose).color)
    square = Camera.from_fov(np.deg2rad(50), (96, 96))
    np.testing.assert_array_equal(guide(same, pose, square).picture, guide(model, pose, square).picture)
