"""How long the networks take in torch and in onnxruntime, and what fewer bits cost the keypoints in accuracy.

    python benchmarks/inference.py                                     # the X-wing that comes with the package
    python benchmarks/inference.py --model part.geopose --cad part.stl --unit mm

Contestants: torch; torch in eight bits where the processor has fast bytes, as `PoseEstimator` has the locator there;
the exported network in onnxruntime, as it has the others; and that quantised to eight bits (static, a scale for each
channel; ranges read from other renders than those judged). Crops come one by one, the contestants in turn; errors are
those of keypoints inside of the crop. The last does not take part with the other networks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from torch.utils.data import DataLoader
from tqdm import tqdm

from geopose import checkpoint
from geopose.bench.common import interleaved, model_parser, timings, write_json
from geopose.cad.model import load_cad
from geopose.calibrate import read_renders
from geopose.checkpoint import model_of
from geopose.data.picture import SyntheticOptions
from geopose.data.sample import ViewSpace
from geopose.data.synthetic import SyntheticDataset
from geopose.estimate import PoseEstimator
from geopose.export import export_onnx
from geopose.fit import start_worker
from geopose.nets.eight import eight_bits, has_fast_bytes
from geopose.nets.exported import Exported, session

FIRST, FEW, OTHER = "torch", "torch, 8 bits", "onnxruntime"
EIGHT = "onnxruntime, 8 bits"
OTHERS = (
    ("locator", 3, (256, 320)),
    ("locator", 3, (480, 640)),
    ("refiner", 9, (128, 128)),
    ("refiner", 9, (256, 256)),
)
Answer = dict[str, torch.Tensor]
Net = Callable[[torch.Tensor], Answer]


class _Ranges(CalibrationDataReader):
    """Crops from which onnxruntime reads how large each number gets."""

    def __init__(self, crops: list[NDArray[np.float32]]) -> None:
        self.crops = iter(crops)

    def get_next(self) -> dict[str, Any] | None:
        """The next crop, None after the last."""
        crop = next(self.crops, None)
        return None if crop is None else {"image": crop}


def by_onnx(path: Path, threads: int) -> Net:
    """The network of an ONNX file as a function of a tensor."""
    graph = session(path.read_bytes(), threads)
    return lambda x: {"heatmaps": torch.from_numpy(graph.run(["heatmaps"], {"image": x.numpy()})[0])}


def crops_of(estimator: PoseEstimator, cad: str, unit: str | None, seed: int, count: int) -> list[Any]:
    """Batches of one crop each, as in training, but of another seed."""
    view = ViewSpace.of_training(estimator.meta["options"])
    options = SyntheticOptions(view=view, crop_size=estimator.crop_size, crop_scale=estimator.crop_scale)
    made = SyntheticDataset(
        load_cad(cad, unit), estimator.keypoints, estimator.symmetries, options, seed, "crop", count
    )
    loader = DataLoader(made, batch_size=1, num_workers=1, worker_init_fn=start_worker)
    return list(tqdm(loader, "rendering", unit="crop"))


def error_of(net: Net, crops: list[Any], window: float | None) -> dict[str, float]:
    """Percentiles of the distances of keypoints to the true ones, crop pixels."""
    cpu = torch.device("cpu")
    found = read_renders(net, crops, cpu, len(crops), float("inf"), (window,))[window]  # type: ignore[arg-type]
    far = found.error.norm(dim=-1)[found.counted].numpy()
    return {"median": float(np.median(far)), "p90": float(np.percentile(far, 90))}


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = model_parser(__doc__)
    parser.add_argument(
        "--count", type=int, default=300, help="crops judged, and as many to read ranges from"
    )
    parser.add_argument("--seed", type=int, default=77_000_017)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    onnxruntime.set_default_logger_severity(3)
    path = Path(args.model or model_of(args.cad, args.unit))
    estimator = PoseEstimator.load(path)
    whole = checkpoint.load_nets(path)[0]
    few = {}
    if has_fast_bytes():
        few = {role: eight_bits(net) for role, net in checkpoint.load_nets(path)[0].items()}
    judged, read = (crops_of(estimator, args.cad, args.unit, args.seed + k, args.count) for k in (0, 1))
    pictures = [(crop["image"].float().div(255),) for crop in judged]
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(path, folder)
        plain, small = Path(folder) / "keypoints.onnx", Path(folder) / "small.onnx"
        ranges = _Ranges([crop["image"].numpy().astype(np.float32) / 255 for crop in read])
        quantize_static(
            plain,
            small,
            ranges,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        size = {OTHER: plain.stat().st_size, EIGHT: small.stat().st_size}
        nets: dict[str, Net] = {FIRST: whole["keypoints"]}
        if few:
            nets[FEW] = few["keypoints"]
        nets |= {OTHER: Exported(whole["keypoints"], "keypoints"), EIGHT: by_onnx(small, args.threads)}
        window = estimator.calibration.get("window")
        errors = {name: error_of(net, judged, window) for name, net in nets.items()}
        with torch.inference_mode():
            times = timings(interleaved(nets, tqdm(pictures, "timing", unit="crop")), FIRST)
    print("| keypoint network | ms a crop | its share of torch's | error, median | error, 90th percentile |")
    print("|---|---|---|---|---|")
    for name in nets:
        t, e = times[name], errors[name]
        spread = f"{t['median']:.1f} ({t['p10']:.1f} to {t['p90']:.1f})"
        print(f"| {name} | {spread} | {t['ratio']:.2f} | {e['median']:.2f} px | {e['p90']:.2f} px |")
    others = others_of(whole, few, pictures)
    print("\n| network, side of its input | contestant | ms | its share of torch's |\n|---|---|---|---|")
    for name, contestants in others.items():
        for contestant, t in contestants.items():
            print(f"| {name} | {contestant} | {t['median']:.1f} | {t['ratio']:.2f} |")
    found = {"count": args.count, "milliseconds": times, "errors_px": errors, "bytes": size, "others": others}
    write_json(args.json, found)


def others_of(whole: dict[str, Any], few: dict[str, Any], pictures: list[Any]) -> dict[str, Any]:
    """Timings of the locator and the refiner by contestant, by name and size; `few`: those in eight bits, if any."""
    found = {}
    for role, channels, shape in OTHERS:
        if role not in whole:
            continue
        larger = [torch.nn.functional.interpolate(p[0], shape, mode="bilinear") for p in pictures[:60]]
        given = [(torch.cat([x] * (channels // 3), 1),) for x in larger]
        nets = {FIRST: whole[role], OTHER: Exported(whole[role], role)}
        nets |= {FEW: few[role]} if role in few else {}
        with torch.inference_mode():
            times = timings(interleaved(nets, tqdm(given, role, unit="picture")), FIRST)
        found[f"{role}, {shape[1]}x{shape[0]}"] = times
    return found


if __name__ == "__main__":
    main()
