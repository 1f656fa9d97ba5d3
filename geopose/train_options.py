"""How to train: every setting with its unit and its default."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from geopose.data.picture import SyntheticOptions
from geopose.data.sample import ViewSpace

ALIKE = 0.4  # of the other things in training pictures, that have the object's colours
SCATTERED = 5  # most other things far from the object


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        minutes: wall time of the whole training, its final judgement included.
        unit: of the CAD file ("m", "cm", "mm", "in") where the file does not say.
        color: of the real thing, where the mesh has none: a name of CSS such as "gold", or "#e8b820"; None: any colour.
        elevation_deg: camera above the object's horizontal plane, degrees, low and high within -90 and 90.
        azimuth_deg: heading of the camera about the object's up axis, degrees.
        roll_deg: turn of the picture, degrees. A smaller view space is learned faster and better.
        up: the object's axis that points up, "+z", "-y", ...
        mesh_error: how far the real thing's surface is from its mesh, diameters: some 0.01 for a scan, 0 for a part
            made from its drawing. The model learns to bear it, and what it says of its own doubt holds for such things.
        backgrounds: folder of photographs to put behind the object; None takes the built-in ones.
        network: "unet" or "hourglass".
        pretrained: start from ImageNet features; None: where the network has them (unet).
        transfer: begin with the refiner that comes with geopose, which has learned from made-up things: comparing is
            much the same for all objects; None: with `pretrained`, unless there is a `start`.
        dense: also learn mask and object coordinates (unet).
        frozen_stride: encoder layers up to this stride (0, 2, 4, 8) stay as they are; None: 4 if pretrained, else 0.
        frozen_5x5: so do the encoder's 5x5 filters, whose gradients cost a quarter of a step; None: if pretrained.
        num_keypoints: how many points of the object are detected.
        crop_size: side of the keypoint network's input, pixels, a multiple of 32.
        crop_scale: side of the crop over the object's size.
        window_size: side of the locator's training windows, pixels, a multiple of 32.
        locator_share: share of the time that goes to the locator; with `start`, 0 leaves it as it is.
        refiner_share: share of the time that goes to the refiner, 0 for none (with `start`: as it is); what is left of
            the time is the keypoint network's. None: 0.1 where the refiner has learned to compare before (`transfer`),
            else 0.3.
        batch_size: pictures per step and process.
        learning_rate: at its peak, of AdamW, for the encoder; the layers after it learn three times as fast, a refiner
            that is taken over (`transfer`) a fifth as fast.
        start: checkpoint of the same mesh and network whose weights and keypoints to start from: trains it further.
        seed: of everything random; a further training wants another.
        workers: processes that make pictures; None: one for two cores; 0: none, for debugging.
        device: "cpu", "cuda", ...; None: a GPU when there is one.
        restart: forget an interrupted training of the same file instead of going on with it.
        quiet: write nothing to stderr.
    """

    minutes: float = 30.0
    unit: str | None = None
    color: str | None = None
    elevation_deg: tuple[float, float] = (-90.0, 90.0)
    azimuth_deg: tuple[float, float] = (-180.0, 180.0)
    roll_deg: tuple[float, float] = (-180.0, 180.0)
    up: str = "+z"
    mesh_error: float = 0.0
    backgrounds: str | None = None
    network: str = "unet"
    pretrained: bool | None = None
    transfer: bool | None = None
    dense: bool = True
    frozen_stride: int | None = None
    frozen_5x5: bool | None = None
    num_keypoints: int = 16
    crop_size: int = 128
    crop_scale: float = 1.5
    window_size: int = 160
    locator_share: float = 0.2
    refiner_share: float | None = None
    batch_size: int = 16
    learning_rate: float = 1e-3
    start: str | None = None
    seed: int = 0
    workers: int | None = None
    device: str | None = None
    restart: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        checks = {
            "minutes": (0 < self.minutes < 1e5, "a positive number of minutes"),
            "network": (self.network in ("unet", "hourglass"), "'unet' or 'hourglass'"),
            "transfer": (not (self.transfer and self.start), "None or False where there is a start"),
            "frozen_stride": (self.frozen_stride in (None, 0, 2, 4, 8), "None, 0, 2, 4 or 8"),
            "num_keypoints": (4 <= self.num_keypoints <= 256, "4 to 256"),
            "crop_size": (self.crop_size >= 32 and self.crop_size % 32 == 0, "a positive multiple of 32"),
            "window_size": (
                self.window_size >= 32 and self.window_size % 32 == 0,
                "a positive multiple of 32",
            ),
            "crop_scale": (1 <= self.crop_scale <= 4, "1 to 4 object sizes"),
            "locator_share": (
                0 <= self.locator_share < 1 and (self.locator_share > 0 or self.start is not None),
                "a share between 0 and 1 (0 only with start)",
            ),
            "refiner_share": (
                0 <= (self.refiner_share or 0) < 1 - self.locator_share + (self.start is not None) * 1e-9,
                "a share that leaves the keypoint network some time (none only with start)",
            ),
            "batch_size": (self.batch_size >= 2, "at least 2"),
            "learning_rate": (0 < self.learning_rate < 1, "a number between 0 and 1"),
            "seed": (self.seed >= 0, "a number >= 0"),
            "workers": (self.workers is None or self.workers >= 0, "None or a number >= 0"),
            "backgrounds": (
                self.backgrounds is None or Path(self.backgrounds).is_dir(),
                "an existing folder",
            ),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected {expected}")
        self.pictures()

    def view(self) -> ViewSpace:
        """The view space (which checks its own limits)."""
        return ViewSpace(tuple(self.elevation_deg), tuple(self.azimuth_deg), tuple(self.roll_deg), self.up)  # type: ignore[arg-type]

    def pictures(self) -> SyntheticOptions:
        """What pictures these options ask for (which check their own limits)."""
        return SyntheticOptions(
            view=self.view(),
            crop_size=self.crop_size,
            crop_scale=self.crop_scale,
            window_size=self.window_size,
            alike=ALIKE,
            scattered=SCATTERED,
            mesh_error=self.mesh_error,
            backgrounds=self.backgrounds,
        )

    def command(self, cad: str, out: str) -> str:
        """The command line of these options: settings that differ from the defaults, files without their folders."""
        words = ["geopose", "train", Path(cad).name, "--out", Path(out).name]
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default or field.name in ("restart", "quiet", "device", "workers"):
                continue
            flag = field.name.removesuffix("_deg").replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{'' if value else 'no-'}{flag}")
            else:
                values = value if isinstance(value, tuple) else (value,)
                shown = (Path(v).name if field.name in ("start", "backgrounds") else v for v in values)
                words += [f"--{flag}", *(f"{v:g}" if isinstance(v, float) else str(v) for v in shown)]
        return " ".join(words)
