"""Training pictures: repeatable, labelled right, as varied as asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trimesh
from scipy import stats
from scipy.spatial.transform import Rotation

from geopose.cad.model import CadModel, load_cad
from geopose.cad.render import facing
from geopose.cad.shading import Lighting, Material, random_lighting, shade
from geopose.cad.symmetry import Symmetries, find_symmetries
from geopose.data import augment, clutter
from geopose.data.picture import PictureMaker, SyntheticOptions, misshapen
from geopose.data.sample import ViewSpace, box_centre_size, look_at, projected_box, turned_to
from geopose.data.synthetic import PADDING, SyntheticDataset, canonical
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import exp_so3
from geopose.train_options import TrainOptions


@pytest.fixture(scope="module")
def car() -> CadModel:
    return load_cad("car")


def dataset(model: CadModel, kind: str, seed: int = 3, **options: object) -> SyntheticDataset:
    points = model.vertices[:: len(model.vertices) // 8][:8]
    return SyntheticDataset(
        model,
        points,
        Symmetries(np.eye(4)[None], ()),
        SyntheticOptions(**options),
        seed,
        kind,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("up", ["+z", "-z", "+y", "-y", "+x", "-x"])
def test_views_say_from_where_they_were_taken(up: str, rng: np.random.Generator) -> None:
    view = ViewSpace((-20, 70), (-200, 30), (-50, 10), up)
    centre = rng.normal(size=3)
    for _ in range(20):
        angles = [rng.uniform(*limits) for limits in (view.elevation_deg, view.azimuth_deg, view.roll_deg)]
        ray = np.array([*rng.uniform(-0.5, 0.5, 2), 1.0])
        R = turned_to(ray) @ look_at(*np.deg2rad(angles), up)
        pose = Pose(R, 4 * ray - R @ centre)
        found = view.angles_deg(pose, centre)
        np.testing.assert_allclose((found - angles + 180) % 360 - 180, 0, atol=1e-6)
        assert view.holds(pose, centre, slack_deg=1e-6)
        for number, off in ((0, 25.0), (0, -25.0), (1, 65.0), (2, 80.0)):
            limits = (view.elevation_deg, view.azimuth_deg, view.roll_deg)[number]
            other = list(angles)
            other[number] = limits[int(off > 0)] + np.sign(off) * min(abs(off), 19.0)
            R = turned_to(ray) @ look_at(*np.deg2rad(other), up)
            assert not view.holds(Pose(R, 4 * ray - R @ centre), centre)


@pytest.mark.parametrize("kind", ["crop", "window", "scene"])
def test_a_picture_depends_on_seed_and_index_alone(car: CadModel, kind: str) -> None:
    small = {"crop_size": 64, "window_size": 64, "scene_wh": (96, 64), "scene_range": (20.0, 60.0)}
    one, two = dataset(car, kind, **small), dataset(car, kind, **small)
    for key, value in one[5].items():
        np.testing.assert_array_equal(value, two[5][key], err_msg=key)
    assert (one[5]["image"] != one[6]["image"]).any()
    assert (one[5]["image"] != dataset(car, kind, seed=4, **small)[5]["image"]).any()


def test_crop_labels_agree_with_the_pose_and_the_picture(car: CadModel) -> None:
    data = dataset(car, "crop", truncated=0.0, occluders=0.0, clutter=0.0)
    for i in range(6):
        item = data[i]
        assert item["image"].shape == (3, 128, 128)
        assert item["image"].dtype == np.uint8
        camera = Camera.from_matrix(item["K"].astype(float), (128, 128))
        pose = Pose(item["R"].astype(float), item["t"].astype(float))
        px = camera.project(pose.apply(data.keypoints))
        np.testing.assert_allclose(item["keypoints_px"][0], px, atol=0.02)
        inside = ((px > -0.5) & (px < 127.5)).all(-1)
        np.testing.assert_array_equal(item["inside"][0], inside)
        box = projected_box(car.vertices, pose, camera)
        rows, columns = np.nonzero(item["mask"] > 0.5)
        cells = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * 4 - 0.5
        assert np.abs(cells - box.clip(-0.5, 127.5)).max() < 6  # the mask fills the box, to a cell and a half
        # Object coordinates in the mask project back onto their own cells.
        local = item["xyz"][:, rows, columns].T * data.maker.half + data.maker.centre
        seen = camera.project(pose.apply(local.astype(float)))
        centre = np.stack([columns, rows], axis=1) * 4 + 1.5
        assert np.median(np.abs(seen - centre)) < 1.5


def test_occluders_take_from_the_mask_and_not_from_the_keypoints(car: CadModel) -> None:
    free = [
        dataset(car, "crop", occluders=0.0, clutter=0.0, truncated=0.0)[i]["visib_fract"] for i in range(8)
    ]
    hidden = [
        dataset(car, "crop", occluders=1.0, clutter=1.0, truncated=1.0)[i]["visib_fract"] for i in range(8)
    ]
    assert np.min(free) > 0.999
    assert np.mean(hidden) < 0.85
    assert np.min(hidden) > 0.1  # what cannot be seen teaches nothing


@pytest.mark.parametrize(("alike", "least", "most"), [(0.0, 0, 0), (0.5, 0.2, 0.8), (1.0, 1, 1)])
def test_some_other_things_wear_the_colours_of_the_object(
    car: CadModel, monkeypatch: pytest.MonkeyPatch, alike: float, least: float, most: float
) -> None:
    data, paints = dataset(car, "window", clutter=1.0, alike=alike), []
    make = clutter.distractor

    def watched(generator: np.random.Generator, paint: Any = None) -> Any:
        paints.append(paint)
        return make(generator, paint)

    monkeypatch.setattr(clutter, "distractor", watched)
    for index in range(12):
        data[index]
    own = [paint is not None and np.array_equal(paint, data.maker.model.colors) for paint in paints]
    assert len(own) >= 12
    assert least <= np.mean(own) <= most
    assert TrainOptions().pictures().alike > 0


@pytest.mark.parametrize("kind", ["window", "scene"])
def test_other_things_stand_all_over_wide_pictures(car: CadModel, kind: str) -> None:
    """And not in crops, of which they would hide too much."""

    def crowded(kind: str, scattered: int) -> np.ndarray:
        ranges = {"window_range": (20.0, 20.0), "scene_range": (60.0, 60.0), "empty": 1.0}
        data = dataset(car, kind, clutter=1.0, occluders=0.0, truncated=0.0, scattered=scattered, **ranges)
        depths, make = [], data.maker.make

        def watched(*args: Any, **kwargs: Any) -> Any:
            picture = make(*args, **kwargs)
            depths.append(picture.depth > 0)
            return picture

        data.maker.make = watched  # type: ignore[method-assign]
        for index in range(8):
            data[index]
        return np.array(depths)

    few, many = crowded(kind, 0), crowded(kind, 8)
    assert many.mean() > 2 * few.mean() > 0
    height, width = many.shape[1] // 2, many.shape[2] // 2
    quarters = [many[:, y : y + height, x : x + width].mean() for y in (0, height) for x in (0, width)]
    assert min(quarters) > 0.002  # all over
    np.testing.assert_array_equal(crowded("crop", 0), crowded("crop", 8))
    assert TrainOptions().pictures().scattered > 0


@pytest.mark.parametrize("strongest", [0.0, 0.4, 1.0, 1.6])
def test_blur_leaves_things_where_they_are(strongest: float) -> None:
    """Half a pixel is many standard deviations of the pose of a large object."""
    y, x = np.mgrid[:96, :128]
    blob = (
        np.exp(-((x - 60.3) ** 2 + (y - 46.8) ** 2) / (2 * 6**2)).astype(np.float32)[..., None].repeat(3, 2)
    )
    for seed in range(60):
        blurred = augment.defocus(np.random.default_rng(seed), blob, strongest)[..., 0]
        assert (x * blurred).sum() / blurred.sum() == pytest.approx(60.3, abs=0.01)
        assert (y * blurred).sum() / blurred.sum() == pytest.approx(46.8, abs=0.01)


def test_truncated_crops_are_padded_as_in_estimation(car: CadModel) -> None:
    image = dataset(car, "crop", truncated=1.0)[1]["image"]
    grey = (image == round(255 * PADDING)).all(0)
    assert grey[0].all() or grey[-1].all() or grey[:, 0].all() or grey[:, -1].all()


def test_few_pixels_blur_the_picture_and_leave_its_labels(car: CadModel) -> None:
    maker = PictureMaker(car, SyntheticOptions())
    camera = Camera(300.0, 300.0, 63.5, 63.5, (128, 128))
    pose = Pose(look_at(0.5, 1.0, 0.2), np.array([0.0, 0, 3.0]) * car.diameter)
    sharpness = []
    for seed in range(6):
        fine = maker.make(np.random.default_rng(seed), camera, pose, pose)
        coarse = maker.make(np.random.default_rng(seed), camera, pose, pose, 0.3)
        assert coarse.image.shape == fine.image.shape
        assert coarse.image.dtype == np.uint8
        assert np.array_equal(coarse.full, fine.full)
        assert np.array_equal(coarse.xyz, fine.xyz)
        # where it is, not only what it looks like: brightness in blocks of 16 pixels stays
        blocks = [p.image.reshape(8, 16, 8, 16, 3).mean((1, 3, 4)).ravel() for p in (fine, coarse)]
        assert np.corrcoef(*blocks)[0, 1] > 0.9
        steps = [np.abs(np.diff(p.image.astype(float), axis=1)).mean() for p in (fine, coarse)]
        sharpness.append(steps[1] / steps[0])
    assert np.median(sharpness) < 0.7


def test_a_thing_that_is_not_quite_its_mesh_lies_where_the_mesh_lies(car: CadModel) -> None:
    generator = np.random.default_rng(0)
    vertices = np.concatenate([car.vertices, car.vertices[:7]])  # some twice, as at seams
    far, size = [], []
    for _ in range(300):
        moved = misshapen(generator, vertices, 0.01 * car.diameter)
        np.testing.assert_array_equal(moved[:7], moved[-7:])
        far.append(np.square(moved - vertices).sum(1).mean())
        spread = [np.linalg.norm(v - v.mean(0)) for v in (moved, vertices)]
        size.append(spread[0] / spread[1])
        np.testing.assert_allclose(moved.mean(0), vertices.mean(0), atol=1e-9 * car.diameter)
        turn, _ = Rotation.align_vectors(moved - moved.mean(0), vertices - vertices.mean(0))
        assert np.degrees(turn.magnitude()) < 0.1
    assert np.sqrt(np.mean(far)) == pytest.approx(0.01 * car.diameter, rel=0.1)
    assert 0.002 < np.std(size) < 0.03
    flat = misshapen(generator, np.zeros((4, 3)), 1.0)  # not a thing, but no reason to fail
    assert np.isfinite(flat).all()


def test_labels_are_those_of_the_mesh_where_the_thing_differs_from_it(car: CadModel) -> None:
    away = []
    for error in (0.0, 0.03):
        options = SyntheticOptions(mesh_error=error, clutter=0.0, occluders=0.0)
        maker = PictureMaker(car, options)
        pose = Pose(look_at(0.5, 0.7, 0.0, "+z"), np.array([0.0, 0.0, 3 * car.diameter]))
        camera = Camera(300.0, 300.0, 63.5, 63.5, (128, 128))
        for seed in range(8):
            picture = maker.make(np.random.default_rng(seed), camera, pose, pose)
            pixel = np.stack(np.nonzero(picture.full)[::-1], -1)
            said = np.asarray(camera.project(pose.apply(picture.xyz[picture.full].astype(float))))
            away.append(np.median(np.linalg.norm(said - pixel, axis=1)))
    assert max(away[:8]) < 0.01  # pixels
    assert 0.5 < np.median(away[8:]) < 10


def test_windows_hold_the_object_at_the_size_said_or_not_at_all(car: CadModel) -> None:
    data = dataset(car, "window", empty=0.4)
    items = [data[i] for i in range(24)]
    present = np.array([bool(i["present"]) for i in items])
    assert 0 < present.sum() < len(items)
    low, high = data.options.window_range
    assert all(low <= i["size_px"] <= high for i in items)
    assert all(i["visib_fract"] == 0 for i in items if not i["present"] and i["visib_fract"] < 0.01)
    assert all(0 < i["visib_fract"] <= 1.01 for i in items if i["present"])


def test_scenes_carry_camera_pose_box_and_visible_share(car: CadModel) -> None:
    data = dataset(car, "scene", scene_wh=(160, 120), scene_range=(30.0, 90.0))
    for i in range(3):
        item = data[i]
        camera, pose = Camera.from_matrix(item["K"], (160, 120)), Pose(item["R"], item["t"])
        np.testing.assert_allclose(item["box"], projected_box(data.maker.vertices, pose, camera))
        assert 0 <= item["visib_fract"] <= 1
        _, x = np.nonzero(item["mask"])
        assert (x >= item["box"][0] - 0.6).all()
        assert (x <= item["box"][2] + 0.6).all()
        assert (item["mask_visib"] <= item["mask"]).all()
        at = item["depth"][item["mask_visib"]]
        assert (np.abs(at - np.linalg.norm(pose.t)) < 1.2 * car.diameter).mean() > 0.9


def test_what_is_whole_in_a_scene_is_seen_entirely(car: CadModel) -> None:
    data = dataset(
        car,
        "scene",
        clutter=0.0,
        occluders=0.0,
        scene_wh=(160, 120),
        scene_range=(20.0, 120.0),
        max_faces=300,
    )
    shares, cut = [], []
    for i in range(12):
        item = data[i]
        low, high = item["box"][:2], item["box"][2:]
        inside = (low >= -0.5).all() and (high <= (159.5, 119.5)).all()
        (shares if inside else cut).append(float(item["visib_fract"]))
    assert len(shares) >= 3
    assert shares == [1.0] * len(shares)
    assert min(cut) < 0.9


@pytest.mark.parametrize(("softest", "wanted"), [(0.3, 0.3), (1.6, 1.0)])
def test_no_picture_is_blurred_more_than_asked_for(
    car: CadModel, monkeypatch: pytest.MonkeyPatch, softest: float, wanted: float
) -> None:
    """A picture of 128 pixels bears a blur of 1."""
    strongest: list[float] = []
    monkeypatch.setattr(augment, "defocus", lambda _, image, most: strongest.append(most) or image)
    dataset(car, "crop", softest=softest, crop_range=(280.0, 280.1), max_faces=300)[0]
    assert set(strongest) == {wanted}


def test_views_stay_in_their_space() -> None:
    rng = np.random.default_rng(0)
    view = ViewSpace(elevation_deg=(10, 40), azimuth_deg=(-30, 60), roll_deg=(-5, 5))
    for _ in range(50):
        R = view.sample_rotation(rng)
        np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(R) == pytest.approx(1)
        towards_camera = -R[2]
        elevation = np.rad2deg(np.arcsin(towards_camera[2]))
        azimuth = np.rad2deg(np.arctan2(towards_camera[1], towards_camera[0]))
        assert 10 - 1e-6 <= elevation <= 40 + 1e-6
        assert -30 - 1e-6 <= azimuth <= 60 + 1e-6


def test_the_whole_sphere_is_covered_evenly() -> None:
    rng = np.random.default_rng(0)
    towards = np.array([-ViewSpace().sample_rotation(rng)[2] for _ in range(4000)])
    assert np.abs(towards.mean(0)).max() < 0.04
    np.testing.assert_allclose(np.cov(towards.T), np.eye(3) / 3, atol=0.03)


@pytest.mark.parametrize("up", ["+z", "-z", "+y", "-y", "+x", "-x"])
def test_up_points_up_in_the_picture(up: str) -> None:
    R = look_at(0.3, 1.0, 0.0, up)
    axis = np.zeros(3)
    axis["xyz".index(up[1])] = 1.0 if up[0] == "+" else -1.0
    assert np.linalg.det(R) == pytest.approx(1)
    assert (R @ axis)[1] < -0.9  # y points down
    assert (R @ axis)[0] == pytest.approx(0, abs=1e-12)


def test_the_smallest_turn_brings_the_axis_to_the_ray() -> None:
    for ray in ([0.3, -0.4, 1.0], [0, 0, 1.0], [1.0, 0, 0.01]):
        unit = np.array(ray) / np.linalg.norm(ray)
        np.testing.assert_allclose(turned_to(np.array(ray)) @ [0, 0, 1.0], unit, atol=1e-12)


def test_box_size_is_the_side_of_a_square_of_the_same_diagonal() -> None:
    centre, size = box_centre_size(np.array([10.0, 20, 40, 60]))
    np.testing.assert_allclose(centre, [25, 40])
    assert size == pytest.approx(50 / np.sqrt(2))


def test_a_continuous_symmetry_gives_one_target_for_all_turns() -> None:
    model = CadModel.from_trimesh(trimesh.creation.cone(radius=0.05, height=0.1), "cone")
    symmetries = find_symmetries(model)
    assert len(symmetries.continuous) == 1
    data = SyntheticDataset(model, model.vertices[:6], symmetries, SyntheticOptions(), 0, "crop")
    camera = Camera(300.0, 300.0, 63.5, 63.5, (128, 128))
    pose = Pose(look_at(0.4, 0.2, 0.1), np.array([0.02, 0.0, 0.6]))
    for angle in (0.5, 2.0, -3.0):
        turn = np.asarray(exp_so3(np.array([0, 0, angle])))
        turned = pose @ Pose(turn, np.zeros(3))
        np.testing.assert_allclose(
            data.keypoint_targets(turned, camera), data.keypoint_targets(pose, camera), atol=1e-6
        )
        moved = canonical(turned, symmetries, np.zeros(3))
        np.testing.assert_allclose(moved.apply(np.zeros((1, 3))), pose.apply(np.zeros((1, 3))), atol=1e-9)


def test_bad_options_are_named(car: CadModel, tmp_path: object) -> None:
    with pytest.raises(ValueError, match="elevation_deg"):
        ViewSpace(elevation_deg=(50, 10))
    with pytest.raises(ValueError, match="up"):
        ViewSpace(up="z")
    with pytest.raises(ValueError, match="kind"):
        dataset(car, "crops")
    with pytest.raises(ValueError, match="backgrounds"):
        PictureMaker(car, SyntheticOptions(backgrounds=str(tmp_path) + "/none"))


def test_the_sensor_keeps_size_and_range() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((48, 64, 3)).astype(np.float32)
    for _ in range(20):
        out = augment.sensor(rng, augment.tone(rng, augment.defocus(rng, image)))
        assert out.shape == image.shape
        assert out.dtype == np.uint8


def test_noise_of_small_and_large_pictures_is_unit_normal_and_not_to_be_written_to() -> None:
    generator = np.random.default_rng(1)
    for side in (64, 128, 700):
        grains = augment._grains(generator, side, side)
        assert grains.shape == (side, side, 3)
        assert stats.kstest(grains[::4, ::4].ravel(), "norm").pvalue > 1e-3
    small, other = (augment._grains(generator, 64, 64) for _ in range(2))
    assert abs(np.corrcoef(small.ravel(), other.ravel())[0, 1]) < 0.05
    kept = small.copy()
    for seed in range(8):
        augment.sensor(np.random.default_rng(seed), np.full((64, 64, 3), 0.5, np.float32))
    np.testing.assert_array_equal(small, kept)


def test_a_tone_is_gain_offset_contrast_and_saturation_in_turn_and_clipped() -> None:
    """Step by step on all pixels; and all of it is linear, a few pixels tell what becomes of every other."""
    generator = np.random.default_rng(4)
    image = generator.uniform(0.3, 0.6, (16, 16, 3)).astype(np.float32)
    for seed in range(12):
        draw = np.random.default_rng(seed)
        wanted = image * (np.exp(draw.normal(0, 0.15)) * np.exp(draw.normal(0, 0.05, 3))) + draw.normal(
            0, 0.03
        )
        if draw.random() < 0.5:
            wanted = wanted.mean() + (wanted - wanted.mean()) * np.exp(draw.normal(0, 0.2))
        if draw.random() < 0.3:
            grey = wanted.mean(-1, keepdims=True)
            wanted = grey + (wanted - grey) * draw.uniform(0.3, 1.3)
        out = augment.tone(np.random.default_rng(seed), image).reshape(-1, 3).astype(float)
        np.testing.assert_allclose(out, wanted.clip(0, 1).reshape(-1, 3), atol=1e-5)
        assert out.min() >= 0
        assert out.max() <= 1
        inner = ((out > 0) & (out < 1)).all(1)
        if inner.sum() < 20:
            continue
        known = np.column_stack([image.reshape(-1, 3), np.ones(256)])[inner]
        change, *_ = np.linalg.lstsq(known, out[inner], rcond=None)
        np.testing.assert_allclose(known @ change, out[inner], atol=1e-5)
        assert (np.diag(change) > 0.1).all()


def test_shading_is_that_of_blinn_and_phong_with_a_mirror_of_the_surroundings() -> None:
    """Point by point, as the formulas are printed."""
    generator = np.random.default_rng(8)
    light = random_lighting(generator)
    material = Material(0.8, 0.5, 30.0, 0.3, 0.4)
    color = generator.random((50, 3)).astype(np.float32)
    rays = (generator.normal(0, 0.3, (50, 3)) + [0, 0, 2]).astype(np.float32)
    normals = facing(generator.normal(size=(50, 3)), rays)
    shadow = generator.random(50).astype(np.float32)
    found = shade(color, normals, rays, light, material, shadow)
    for i in range(50):
        n, view, albedo = (
            normals[i].astype(float),
            -rays[i] / np.linalg.norm(rays[i].astype(float)),
            color[i] ** 2,
        )
        arriving = light.ground + (light.sky - light.ground) * (0.5 + 0.5 * n @ light.up)
        shine = np.zeros(3)
        for number, (towards, strength) in enumerate(zip(light.directions, light.colors, strict=True)):
            cosine = max(n @ towards, 0) * (shadow[i] if number == 0 else 1)
            arriving = arriving + cosine * strength
            half = (towards + view) / np.linalg.norm(towards + view)
            shine = (
                shine
                + material.specular * (cosine > 0) * max(half @ n, 1e-4) ** material.shininess * strength
            )
        mirrored = 2 * (view @ n) * n - view
        around = light.sky * (0.5 + 0.5 * mirrored @ light.up)
        for (*towards, sharp), strength in zip(light.glow, light.glow_colors, strict=True):
            around = around + np.exp(sharp * (mirrored @ towards - 1)) * strength
        shine = shine + material.mirror * (0.3 + 0.7 * (1 - view @ n) ** 3) * around
        expected = (
            material.diffuse * albedo * arriving + (albedo * material.metal + 1 - material.metal) * shine
        )
        np.testing.assert_allclose(found[i], expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("size_wh", [(40, 30), (128, 128), (300, 200), (2, 1)])
def test_a_window_of_a_photograph_keeps_its_colours_where_they_are(size_wh: tuple[int, int]) -> None:
    """A ramp in x and y, cut and shrunk by whatever factor, is a ramp still."""
    y, x = np.mgrid[:320, :400]
    ramp = np.stack([x * 0.5, y * 0.6, 0 * x], -1).astype(np.uint8)
    for seed in range(12):
        window = clutter._window(np.random.default_rng(seed), ramp, size_wh, 0.2).astype(float)
        assert window.shape == (size_wh[1], size_wh[0], 3)
        for channel, along in ((0, 1), (1, 0)):
            steps = np.diff(window[..., channel], axis=along)
            if steps.size:
                assert steps.min() >= -1 or steps.max() <= 1  # one way or mirrored
                assert np.ptp(steps) <= 2 + 2 * np.abs(steps).mean() * 0.6


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("off", [1e-3, 3e-4, 1e-4, 3e-5])
def test_light_from_right_behind_a_glossy_surface_makes_no_sparks(
    off: float, rng: np.random.Generator
) -> None:
    """Half-way between the light and the eye is then next to nothing, all rounding (once inf, and not a number)."""
    normals, one = rng.normal(size=(20_000, 3)), np.ones((1, 3), np.float32)
    view = np.array([0.48, 0.6, -0.64])
    normals *= np.sign(normals @ view)[:, None] / np.linalg.norm(normals, axis=1, keepdims=True)
    behind = -view + off * rng.normal(size=(4, 3))
    behind /= np.linalg.norm(behind, axis=1, keepdims=True)
    black = np.zeros((1, 3), np.float32)
    light = Lighting(
        behind.astype(np.float32),
        np.repeat(one, 4, 0),
        one[0],
        black[0],
        black[0],
        np.array([[0, -1, 0, 10]], np.float32),
        black,
    )
    rays = np.repeat(-view[None], len(normals), 0).astype(np.float32)
    seen = shade(
        np.ones_like(rays), normals.astype(np.float32), rays, light, Material(0.5, 0.5, 200.0, 0.1, 0.0)
    )
    lit = np.maximum(normals @ behind.T, 0).sum(1)
    assert (seen <= (0.5 * lit + 0.5 * (normals @ behind.T > 0).sum(1))[:, None] + 1e-3).all()
    assert (seen >= 0).all()
