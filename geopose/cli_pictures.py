"""Commands that look at pictures: demo, estimate, track, diagnose, view."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING

from geopose.cli_options import (
    INTERRUPTED,
    NO_POSE,
    SUCCESS,
    UNITS,
    Arguments,
    add_box,
    add_camera,
    add_folder,
    add_json,
    add_options,
    camera_from,
    check_input,
    options_from,
    output_file,
    report,
)

if TYPE_CHECKING:
    from geopose.result import PoseEstimate


def demo_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser, "where to write (default: %(default)s)", "geopose-demo")
    parser.add_argument("--model", metavar="FILE", help="another checkpoint of the X-wing")
    parser.add_argument(
        "--frames", type=int, default=48, help="pictures of the flight (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of stars and noise (default: %(default)s)")
    add_json(parser)


def demo(arguments: Arguments) -> int:
    from geopose.demo import run_demo
    from geopose.estimate import PoseEstimator

    estimator = PoseEstimator.load(arguments.model) if arguments.model else None
    result = run_demo(arguments.out, estimator, arguments.frames, arguments.seed, sys.stderr.isatty())
    report(arguments, result.table(), dataclasses.asdict(result))
    return SUCCESS if result.summary["found"] else NO_POSE


def _add_photo_and_object(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", help="picture file")
    parser.add_argument(
        "--cad", metavar="FILE", help="mesh file or built-in name: takes the model trained for it"
    )
    parser.add_argument("--unit", choices=UNITS, help="of the mesh, where the file does not say")
    parser.add_argument("--model", metavar="FILE", help="checkpoint; with it, --cad is not needed")
    add_camera(parser)
    add_box(parser)


def output_picture(text: str) -> str:
    """As `output_file`, for a picture."""
    from PIL import Image

    suffix = os.path.splitext(text)[1].lower()
    if Image.registered_extensions().get(suffix) not in ("PNG", "JPEG", "WEBP", "TIFF", "BMP"):
        raise argparse.ArgumentTypeError(f"{text!r} ends in {suffix!r}, expected .png or .jpg")
    return output_file(text)


def output_video(text: str) -> str:
    """As `output_file`, for a video."""
    from geopose.video import VIDEOS

    suffix = os.path.splitext(text)[1].lower()
    if suffix not in VIDEOS:
        raise argparse.ArgumentTypeError(f"{text!r} ends in {suffix!r}, expected one of {', '.join(VIDEOS)}")
    return output_file(text)


def estimate_arguments(parser: argparse.ArgumentParser) -> None:
    _add_photo_and_object(parser)
    parser.add_argument(
        "--instances",
        type=int,
        default=1,
        metavar="N",
        help="how many to look for at most (default: %(default)s)",
    )
    parser.add_argument(
        "--overlay", metavar="FILE", type=output_picture, help="write the picture with the pose drawn on it"
    )
    parser.add_argument("--device", help='"cpu", "cuda", ... (default: a GPU when there is one)')
    add_json(parser)


def estimate(arguments: Arguments) -> int:
    from geopose.image import load_image
    from geopose.visualize import save_image

    found = _estimated(arguments)
    if arguments.instances == 1:
        report(arguments, _estimate_text(found[0]), found[0].to_json())
    else:
        texts = [f"instance   {i} of {len(found)}\n{_estimate_text(each)}" for i, each in enumerate(found, 1)]
        report(arguments, "\n\n".join(texts), {"instances": [json.loads(each.to_json()) for each in found]})
    if arguments.overlay:
        drawn = load_image(arguments.photo)[0]
        for each in found:
            drawn = each.overlay(drawn)
        save_image(drawn, arguments.overlay)
    return SUCCESS if any(each.status == "ok" for each in found) else NO_POSE


def _estimated(arguments: Arguments) -> list[PoseEstimate]:
    from geopose.cad.model import load_cad
    from geopose.checkpoint import model_of
    from geopose.estimate import PoseEstimator
    from geopose.image import load_image

    if not (arguments.cad or arguments.model):
        raise ValueError("one of --cad and --model is needed")
    if getattr(arguments, "instances", 1) < 1:
        raise ValueError(f"--instances: got {arguments.instances}, expected at least 1")
    camera = camera_from(arguments, lambda: load_image(arguments.photo)[0].shape[1::-1])
    path = arguments.model or model_of(arguments.cad, arguments.unit)
    estimator = PoseEstimator.load(path, arguments.device, many=False)
    _check_photo(arguments)
    if arguments.cad:
        estimator.check(load_cad(arguments.cad, arguments.unit) if arguments.unit else arguments.cad)
    most = getattr(arguments, "instances", 1)
    if most == 1:
        return [estimator.estimate(arguments.photo, camera, arguments.box)]
    return estimator.estimate_all(arguments.photo, camera, most, box=arguments.box)


def _check_photo(arguments: Arguments) -> None:
    check_input("photo", arguments.photo, "a picture (.jpg, .png, ...)")


def _estimate_text(estimate: PoseEstimate) -> str:
    import numpy as np

    from geopose.geometry.rotation import hat

    lines = [f"status     {estimate.status}, confidence {estimate.confidence:.2f}"]
    lines += [f"           {reason}" for reason in estimate.reasons]
    if estimate.pose is not None:
        t, quat = np.asarray(estimate.pose.t), np.asarray(estimate.pose.quat_wxyz)
        lines.append("position   x {:.4f}  y {:.4f}  z {:.4f} m (camera: right, down, forward)".format(*t))
        lines.append("rotation   w {:.5f}  x {:.5f}  y {:.5f}  z {:.5f} (cam_from_obj)".format(*quat))
    if estimate.pose is not None and estimate.covariance is not None:
        at = np.eye(6)
        at[:3, 3:] = -hat(t)  # the object moves by rho + phi x t
        deviations = np.sqrt(np.diag(at @ estimate.covariance @ at.T))
        lines.append("std. dev.  {:.4f} {:.4f} {:.4f} m,".format(*deviations[:3]))
        lines[-1] += " {:.2f} {:.2f} {:.2f} deg about the camera's axes".format(*np.rad2deg(deviations[3:]))
    lines.append(f"time       {1000 * estimate.timings.get('total', float('nan')):.0f} ms")
    return "\n".join(lines)


def track_arguments(parser: argparse.ArgumentParser) -> None:
    from geopose.track import TrackOptions

    parser.add_argument("source", help="video file, folder of pictures, or number of a camera (0, 1, ...)")
    parser.add_argument("--model", required=True, metavar="FILE", help="checkpoint")
    parser.add_argument(
        "--out", metavar="FILE", type=output_video, help="video with the poses drawn on it (.mp4 or .avi)"
    )
    parser.add_argument(
        "--csv",
        metavar="FILE",
        type=output_file,
        help="one line per frame: time, status, pose, covariance, reason",
    )
    add_camera(parser)
    parser.add_argument("--fps", type=float, help="frames per second (default: what the file says, else 30)")
    parser.add_argument(
        "--every-frame",
        action="store_true",
        help="of a camera, also the frames that came while another was worked on (a file's are all taken)",
    )
    add_options(
        parser, TrackOptions, [f.name for f in dataclasses.fields(TrackOptions) if f.name != "frame_s"]
    )
    parser.add_argument("--device", help='"cpu", "cuda", ... (default: a GPU when there is one)')
    add_json(parser)


def track(arguments: Arguments) -> int:
    from geopose.estimate import PoseEstimator
    from geopose.track import Tracker, TrackOptions
    from geopose.video import open_footage, track_footage

    estimator = PoseEstimator.load(arguments.model, arguments.device)
    footage = open_footage(arguments.source, arguments.fps, arguments.every_frame)
    camera = camera_from(arguments, lambda: footage.size_wh)
    tracker = Tracker(estimator, camera or footage.camera, options_from(arguments, TrackOptions))
    tracked = track_footage(tracker, footage, arguments.out, arguments.csv, sys.stderr.isatty())
    told = ""
    if camera is None and footage.camera is not None:
        told = f"focal length {footage.camera.fx:.0f} px from EXIF of the first picture, give or take 3 %\n"
    report(arguments, f"{told}{tracked}", dataclasses.asdict(tracked))
    if tracked.interrupted:
        return INTERRUPTED
    return SUCCESS if tracked.ok else NO_POSE


def diagnose_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", help="picture file")
    parser.add_argument("--model", required=True, metavar="FILE", help="checkpoint")
    parser.add_argument(
        "--out", default="diagnosis.html", metavar="FILE", type=output_file,
        help="the page (default: %(default)s)",
    )  # fmt: skip
    add_camera(parser)
    add_box(parser)
    parser.add_argument(
        "--distance",
        type=float,
        metavar="M",
        help="metres to the object, as far as known: shows a wrong unit",
    )
    parser.add_argument("--device", help='"cpu", "cuda", ... (default: a GPU when there is one)')
    add_json(parser)


def diagnose(arguments: Arguments) -> int:
    from geopose.diagnose import diagnose
    from geopose.diagnose_page import write_page
    from geopose.estimate import PoseEstimator
    from geopose.image import load_image

    camera = camera_from(arguments, lambda: load_image(arguments.photo)[0].shape[1::-1])
    estimator = PoseEstimator.load(arguments.model, arguments.device, many=False)
    _check_photo(arguments)
    found = diagnose(estimator, arguments.photo, camera, arguments.box, arguments.distance)
    page = write_page(found, arguments.out, f"{estimator.model.name} in {arguments.photo}")
    evidence = [dataclasses.asdict(check) | {"failed": check.failed} for check in found.checks]
    value = {"verdict": found.verdict, "status": found.estimate.status, "evidence": evidence, "page": page}
    lines = [f"status {found.estimate.status}, confidence {found.estimate.confidence:.2f}", found.verdict]
    lines += [f"  {c.cause}: {c.found} (well: {c.limit})" for c in found.causes]
    report(arguments, "\n".join([*lines, f"wrote {page}"]), value)
    return SUCCESS


def view_arguments(parser: argparse.ArgumentParser) -> None:
    _add_photo_and_object(parser)
    parser.add_argument(
        "--estimate",
        metavar="FILE",
        help="show this answer, written by `geopose estimate --json FILE`, instead of estimating again",
    )
    parser.add_argument("--host", default="127.0.0.1", help="who may look (default: this machine)")
    parser.add_argument("--port", type=int, default=8080, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, metavar="S", help="stop then (default: Ctrl-C)")
    parser.add_argument("--device", help='"cpu", "cuda", ... (default: a GPU when there is one)')
    add_json(parser)


def view(arguments: Arguments) -> int:
    import threading

    try:
        import viser
    except ImportError:
        raise ImportError('the 3D view needs viser: pip install "geopose[view]"') from None
    from geopose.view import build_scene

    found = _saved(arguments) if arguments.estimate else _estimated(arguments)[0]
    report(arguments, _estimate_text(found), found.to_json())
    server = viser.ViserServer(arguments.host, arguments.port, label="geopose", verbose=False)
    try:
        build_scene(server, found, arguments.photo)
        where = f"look at http://{arguments.host}:{server.get_port()} (Ctrl-C ends it)"
        print(where, file=sys.stderr if arguments.json == "-" else None, flush=True)
        threading.Event().wait(arguments.seconds)
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()
    return SUCCESS if found.status == "ok" else NO_POSE


def _saved(arguments: Arguments) -> PoseEstimate:
    from geopose.cad.model import load_cad
    from geopose.estimate import PoseEstimator
    from geopose.saved import read_estimate

    if arguments.camera or arguments.camera_id is not None or arguments.fov is not None or arguments.box:
        raise ValueError("--estimate: tells camera and place itself; leave out --camera, --fov and --box")
    _check_photo(arguments)
    if not (arguments.cad or arguments.model):
        raise ValueError("--estimate: one of --cad and --model is needed, too: they hold the mesh")
    if arguments.model:
        return read_estimate(arguments.estimate, PoseEstimator.load(arguments.model, "cpu", many=False).model)
    return read_estimate(arguments.estimate, load_cad(arguments.cad, arguments.unit))
