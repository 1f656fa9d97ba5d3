"""Any picture a user may have, in; one kind of array, out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geopose.image import guessed_camera, load_image


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def test_paths_arrays_pil_and_tensors_agree(picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    tensor = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    for img in (picture, Image.fromarray(picture), tmp_path / "a.png", str(tmp_path / "a.png"), tensor):
        np.testing.assert_array_equal(load_image(img)[0], picture)


def test_grey_alpha_and_sixteen_bits(picture: np.ndarray, tmp_path: Path) -> None:
    grey = picture[..., 0]
    for img in (grey, Image.fromarray(grey), grey[..., None]):
        np.testing.assert_array_equal(load_image(img)[0], np.repeat(grey[..., None], 3, axis=2))
    alpha = np.dstack([picture, np.full(grey.shape, 7, np.uint8)])
    np.testing.assert_array_equal(load_image(alpha)[0], picture)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(load_image(tmp_path / "deep.png")[0][..., 1], grey)


def test_exif_turns_the_picture_and_gives_the_focal_length(picture: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    exif.get_ifd(0x8769)[0xA405] = 26  # a phone's wide lens, 35 mm equivalent
    Image.fromarray(picture).save(tmp_path / "phone.jpg", quality=95, exif=exif)
    image, camera = load_image(tmp_path / "phone.jpg")
    assert image.shape == (40, 30, 3)
    assert camera is not None
    assert camera.size_wh == (30, 40)
    assert camera.fx == pytest.approx(26 * 50 / 43.27, rel=1e-3)
    assert camera.focal_rel_std > 0
    assert load_image(picture)[1] is None


def test_the_guess_says_how_unsure_it_is() -> None:
    wide, tall = guessed_camera((640, 480)), guessed_camera((480, 640))
    assert wide.fx == pytest.approx(320 / np.tan(np.pi / 6))
    assert tall.fx == pytest.approx(wide.fx)
    assert wide.focal_rel_std == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("img", "words"),
    [
        (np.zeros((4, 4, 3)), "uint8"),
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "one pixel"),
        (torch.zeros(4, 4, 3), r"\(3, H, W\)"),
        (torch.full((3, 4, 4), 200.0), r"\[0, 1\]"),
        (torch.full((3, 4, 4), float("nan")), "finite"),
        (17, "path"),
    ],
)
def test_what_is_no_picture_is_refused(img: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_image(img)


def test_missing_and_broken_files_are_named(picture: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        load_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.png"):
        load_image(tmp_path / "text.png")
    Image.fromarray(picture).resize((400, 300)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut\.jpg"):
        load_image(tmp_path / "cut.jpg")
