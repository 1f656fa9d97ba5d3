"""Any picture a user may have, in; one kind of array, out."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from geopose.geometry.camera import Camera
from geopose.image import guessed_camera, load_image, picture_and_camera


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


def test_files_of_other_kinds(picture: np.ndarray, tmp_path: Path) -> None:
    """Transparency, print colours, palettes, 16 bits a channel, one bit a pixel."""
    image = Image.fromarray(picture)
    alpha = image.copy()
    alpha.putalpha(7)
    alpha.save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png")[0], picture)
    smooth = Image.fromarray(np.full((30, 40, 3), (200, 90, 40), np.uint8))
    smooth.convert("CMYK").save(tmp_path / "print.jpg", quality=98)
    found, _ = load_image(tmp_path / "print.jpg")
    assert found.shape == picture.shape
    assert np.abs(found.astype(int) - (200, 90, 40)).max() < 6, "not its negative"
    few = image.quantize(16)
    few.save(tmp_path / "palette.gif")
    np.testing.assert_array_equal(load_image(tmp_path / "palette.gif")[0], np.asarray(few.convert("RGB")))
    cv2.imwrite(str(tmp_path / "deep.png"), picture[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(load_image(tmp_path / "deep.png")[0], picture)
    image.convert("1").save(tmp_path / "ink.png")
    assert set(np.unique(load_image(tmp_path / "ink.png")[0])) == {0, 255}
    Image.fromarray(picture[:1, :1]).save(tmp_path / "dot.png")
    np.testing.assert_array_equal(load_image(tmp_path / "dot.png")[0], picture[:1, :1])


def test_grey_levels_of_other_cameras(picture: np.ndarray, tmp_path: Path) -> None:
    """Floats in [0, 1] or as integers, and 10, 12 or 14 bits in files of 16, which are no darker for it."""
    grey = np.maximum(picture[..., 0], 1)
    grey[0, 0] = 255
    for factor, name in ((1 / 255, "unit"), (1, "levels")):
        Image.fromarray(np.float32(grey * factor)).save(tmp_path / f"{name}.tif")
        np.testing.assert_array_equal(load_image(tmp_path / f"{name}.tif")[0][..., 1], grey)
    for white in (1023, 4095):
        Image.fromarray(np.round(grey * (white / 255)).astype(np.uint16)).save(tmp_path / "deep.png")
        found = load_image(tmp_path / "deep.png")[0][..., 1]
        assert np.abs(found.astype(int) - grey).max() <= 1
    dim = np.full((4, 4), 5000, np.uint16)  # of 14 bits
    assert (load_image(Image.fromarray(dim))[0] == 5000 * 255 // 16383).all()
    assert (load_image(Image.fromarray(dim + 30_000))[0] == 35_000 * 255 // 65535).all()
    for bad in (np.nan, np.inf):
        Image.fromarray(np.full((4, 4), bad, np.float32)).save(tmp_path / "bad.tif")
        with pytest.raises(ValueError, match="^img: expected finite values"):
            load_image(tmp_path / "bad.tif")


def test_tensors_of_any_precision(picture: np.ndarray) -> None:
    tensor = torch.from_numpy(picture).permute(2, 0, 1) / 255
    for dtype, most in ((torch.float64, 0), (torch.float16, 1), (torch.bfloat16, 1)):
        found = load_image(tensor.to(dtype))[0].astype(int)
        assert np.abs(found - picture).max() <= most


def test_a_batch_of_cameras_is_refused(picture: np.ndarray) -> None:
    f = np.full(2, 50.0)
    for camera in (Camera(f, f, f, f, (40, 30)), Camera(50.0, 50.0, 20.0, 15.0, (40, 30), np.zeros((2, 5)))):
        with pytest.raises(ValueError, match="camera: expected one camera"):
            picture_and_camera(picture, camera)


def test_a_picture_of_a_hundred_megapixels_is_read_without_a_word(tmp_path: Path) -> None:
    Image.new("L", (12_000, 9000), 50).save(tmp_path / "large.jpg", quality=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image, _ = load_image(tmp_path / "large.jpg")
    assert image.shape == (9000, 12_000, 3)
    assert np.abs(image[::1000, ::1000].astype(int) - 50).max() < 5


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    """A small file that says that it holds 10 gigapixels."""
    path = tmp_path / "bomb.png"
    Image.new("1", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"bomb\.png.*too large"):
        load_image(path)
