"""The JSON of an estimate is what its published schema says, found or not."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from geopose import Camera, PoseEstimate, PoseEstimator
from geopose.checkpoint import model_of
from geopose.demo import flight, photograph, star_field

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema comes with the extra [test]")
SCHEMA = json.loads((files("geopose") / "pose_estimate.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def estimates() -> dict[str, PoseEstimate]:
    """Of the X-wing in sight, with a guessed camera, and of an empty sky."""
    estimator = PoseEstimator.load(model_of("xwing"))
    generator = np.random.default_rng(0)
    camera = Camera.from_fov(np.deg2rad(50), (480, 360))
    sky = star_field(generator, camera.size_wh)
    ship = photograph(estimator.model, camera, flight(12)[6], sky, generator)
    return {"seen": estimator.estimate(ship), "missed": estimator.estimate(np.zeros_like(sky), camera)}


def _validator() -> Any:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA)


@pytest.mark.parametrize("which", ["seen", "missed"])
def test_estimates_are_valid(estimates: dict[str, PoseEstimate], which: str) -> None:
    estimate = estimates[which]
    value = json.loads(estimate.to_json())
    _validator().validate(value)
    assert (value["cam_from_obj"] is None) == (which == "missed")
    assert set(SCHEMA["required"]) == set(value)


def test_numbers_that_are_not_finite_are_null(estimates: dict[str, PoseEstimate]) -> None:
    import dataclasses

    seen = estimates["seen"]
    value = json.loads(dataclasses.replace(seen, covariance=np.full((6, 6), np.inf)).to_json())
    _validator().validate(value)
    assert value["covariance_rho_m_phi_rad"][0][0] is None


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("status", "fine"),
        ("confidence", 1.5),
        ("box_px", [1, 2, 3]),
        ("keypoints", {"points_px": []}),
        ("format", "geopose/pose_estimate/2"),
        ("more", 1),
    ],
)
def test_the_schema_refuses(estimates: dict[str, PoseEstimate], name: str, wrong: Any) -> None:
    value = json.loads(estimates["seen"].to_json()) | {name: wrong}
    with pytest.raises(jsonschema.ValidationError):
        _validator().validate(value)
