"""Pictures at the door: any kind a user has, as (H, W, 3) uint8 RGB, and the camera that the file tells
of."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from geopose._io import eight_bits
from geopose.geometry.camera import Camera

Picture = NDArray[np.uint8]

_GUESSED_FOV_DEG = 60.0  # horizontal; phones and webcams have 55 to 75 degrees
_GUESSED_STD = 0.2
_EXIF_STD = 0.03
_FULL_FRAME_DIAGONAL_MM = 43.27  # of 36 mm x 24 mm, to which EXIF's 35 mm equivalent refers (CIPA DCG-001)


def load_image(img: Any) -> tuple[Picture, Camera | None]:
    """The picture (H, W, 3) uint8 RGB, and a Camera if the file carries its focal length (EXIF), else None.

    Args:
        img: a path, a PIL image, a uint8 array (H, W, 3) RGB (or (H, W), (H, W, 4)), or a float tensor
            (3, H, W) RGB in [0, 1]. EXIF orientation is applied; transparency is dropped; 10 to 16 bits become 8.
    Raises:
        FileNotFoundError, ValueError: naming `img`, what came and what was expected.
    """
    if isinstance(img, (str, os.PathLike)):
        return _open(Path(img))
    if isinstance(img, Image.Image):
        return _from_pil(*_upright(img))
    if isinstance(img, np.ndarray):
        return _from_array(img), None
    if hasattr(img, "detach"):
        tensor = img.detach().cpu()
        return _from_tensor((tensor.float() if tensor.is_floating_point() else tensor).numpy()), None
    raise ValueError(
        f"img: expected a path, PIL image, uint8 RGB array or float tensor, got {type(img).__name__}"
    )


def _open(path: Path) -> tuple[Picture, Camera | None]:
    if not path.is_file():
        raise FileNotFoundError(f"img: no such file {str(path)!r}")
    try:
        with warnings.catch_warnings():
            # 90 to 180 megapixels are a picture, too
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                upright, tags = _upright(image)
    except UnidentifiedImageError:
        raise ValueError(
            f"img: {str(path)!r} is not a picture of a known format; save it as JPEG or PNG (a phone's HEIC, too)"
        ) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"img: {str(path)!r} is too large, make it smaller first ({error})") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(f"img: {str(path)!r} cannot be read, is it cut short? ({error})") from None
    return _from_pil(upright, tags)


def _upright(image: Image.Image) -> tuple[Image.Image, dict[int, Any]]:
    """The picture as EXIF wants it seen, and EXIF's tags."""
    exif = image.getexif()
    return ImageOps.exif_transpose(image) or image, {**exif, **exif.get_ifd(0x8769)}


def _from_pil(image: Image.Image, tags: dict[int, Any]) -> tuple[Picture, Camera | None]:
    if image.mode.startswith("I") or image.mode == "F":
        picture = np.repeat(eight_bits(np.asarray(image, np.float64), image.mode)[..., None], 3, axis=2)
    else:
        try:
            picture = np.asarray(image.convert("RGB"))
        except ValueError as error:
            raise ValueError(
                f"img: expected a picture that can be RGB, got mode {image.mode!r} ({error})"
            ) from None
    return _checked(picture), _exif_camera(tags, (image.width, image.height))


def _exif_camera(tags: dict[int, Any], size_wh: tuple[int, int]) -> Camera | None:
    """The camera of EXIF's 35 mm equivalent focal length (tag 0xA405), a few percent uncertain."""
    try:
        equivalent = float(tags.get(0xA405) or 0)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if not 3 < equivalent < 3000:
        return None
    width, height = size_wh
    focal = equivalent * float(np.hypot(width, height)) / _FULL_FRAME_DIAGONAL_MM
    return Camera(focal, focal, 0.5 * (width - 1), 0.5 * (height - 1), size_wh, focal_rel_std=_EXIF_STD)


def picture_and_camera(img: Any, camera: Camera | None) -> tuple[Picture, Camera, tuple[str, ...]]:
    """The picture, the camera to use (`camera`, else EXIF's, else a guess), and what is to be said of it.

    Raises:
        FileNotFoundError, ValueError: naming the argument, what came and what was expected.
    """
    picture, from_file = load_image(img)
    size = (picture.shape[1], picture.shape[0])
    if camera is None:
        if from_file is not None:
            return picture, from_file, (f"focal length {from_file.fx:.0f} px from EXIF, give or take 3 %",)
        guess = guessed_camera(size)
        note = f"no camera given: assumed a focal length of {guess.fx:.0f} px, give or take 20 %; distances suffer"
        return picture, guess, (note,)
    if not isinstance(camera, Camera):
        raise ValueError(f"camera: expected a Camera, got {type(camera).__name__}")
    if camera.batch_shape:
        raise ValueError(
            f"camera: expected one camera, got a batch {camera.batch_shape}; index it: camera[0]"
        )
    if tuple(camera.size_wh) != size:
        raise ValueError(
            f"camera: is for pictures of {camera.size_wh[0]}x{camera.size_wh[1]}, got one of {size[0]}x{size[1]}; "
            "if the picture was resized, scale the camera with crop_resize"
        )
    return picture, camera.numpy(), ()


def guessed_camera(size_wh: tuple[int, int]) -> Camera:
    """The camera assumed where nothing is known: 60 degrees across the longer side, give or take 20 %."""
    axis = "x" if size_wh[0] >= size_wh[1] else "y"
    camera = Camera.from_fov(float(np.deg2rad(_GUESSED_FOV_DEG)), size_wh, axis=axis)
    return Camera(camera.fx, camera.fy, camera.cx, camera.cy, size_wh, focal_rel_std=_GUESSED_STD)


def _from_array(array: NDArray[Any]) -> Picture:
    if array.dtype != np.uint8:
        raise ValueError(f"img: expected uint8 for a numpy array, got {array.dtype} (scale to 0..255 first)")
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        hint = "; channels come last: img.transpose(1, 2, 0)" if array.shape[:1] in ((3,), (4,)) else ""
        raise ValueError(f"img: expected shape (H, W, 3) RGB for a numpy array, got {array.shape}{hint}")
    array = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[..., :3]
    return _checked(array)


def _from_tensor(array: NDArray[Any]) -> Picture:
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or array.shape[0] != 3:
        raise ValueError(f"img: expected a tensor (3, H, W) RGB, got shape {array.shape}")
    if array.dtype == np.uint8:
        return _checked(array.transpose(1, 2, 0))
    if not np.isfinite(array).all() or array.min(initial=0) < 0 or array.max(initial=0) > 1:
        raise ValueError(
            f"img: expected finite values in [0, 1] for a float tensor, got {array.min():.3g} to {array.max():.3g}; "
            "grey levels up to 255 are divided by 255 first"
        )
    return _checked((array.transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8))


def _checked(picture: NDArray[np.uint8]) -> Picture:
    if picture.shape[0] == 0 or picture.shape[1] == 0:
        raise ValueError(f"img: expected at least one pixel, got shape {picture.shape}")
    return np.ascontiguousarray(picture)
