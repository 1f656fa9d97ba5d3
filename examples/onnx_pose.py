"""A pose with onnxruntime, NumPy and OpenCV alone, from the files that `geopose export` writes.

geopose export part.geopose --out part_onnx
python onnx_pose.py part_onnx photo.jpg 800          # 800: the focal length in pixels"""

import json
import sys

import cv2
import numpy as np
import onnxruntime


def run(path, image):  # (H, W, 3) uint8 RGB -> the network's first output
    image = image.transpose(2, 0, 1)[None].astype(np.float32) / 255
    return onnxruntime.InferenceSession(path).run(None, {"image": image})[0][0]


def locate(folder, image, rules):  # centre (2,) and size of the best candidate, image pixels
    scale, grey = rules["locator"]["side_px"] / max(image.shape[:2]), [rules["padding"]] * 3
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    below, right = (-n % rules["locator"]["multiple_px"] for n in small.shape[:2])
    small = cv2.copyMakeBorder(small, 0, below, 0, right, cv2.BORDER_CONSTANT, value=grey)
    maps = run(f"{folder}/locator.onnx", small)
    y, x = np.unravel_index(maps[0].argmax(), maps[0].shape)
    centre = (np.array([x, y]) + 0.5) * rules["locator"]["stride_px"] + maps[2:4, y, x]
    return centre / scale - 0.5, rules["locator"]["size_unit_px"] * 2 ** maps[1, y, x] / scale


def keypoints(folder, image, rules):  # (K, 2) image pixels, and image pixels per crop pixel
    centre, size = locate(folder, image, rules)
    side, window = rules["crop"]["size_px"], rules["heatmaps"]["window_cells"] or np.inf
    scale = side / (rules["crop"]["scale"] * size)
    less = min(1.2 * scale, 1.0)  # smooth before shrinking; the warp does the rest
    image = cv2.resize(image, None, fx=less, fy=less, interpolation=cv2.INTER_AREA)
    matrix = np.c_[np.eye(2) * scale / less, 0.5 * side - 0.5 - scale * (centre + 0.5 - 0.5 / less)]
    crop = cv2.warpAffine(image, matrix, (side, side), borderValue=[rules["padding"]] * 3)
    heat = run(f"{folder}/keypoints.onnx", crop)
    cells = np.stack(np.meshgrid(*map(np.arange, heat.shape[:0:-1])), -1)
    peaks = np.array([cells[h == h.max()][0] for h in heat])[:, None, None]
    heat = np.exp(heat - heat.max((1, 2), keepdims=True)) * (abs(cells - peaks) <= window).all(-1)
    mean = np.einsum("khw,hwc->kc", heat, cells) / heat.sum((1, 2))[:, None]
    return ((mean + 0.5) * rules["heatmaps"]["stride_px"] - 0.5 * side) / scale + centre, 1 / scale


def pose(folder, image, K):  # rotation vector, translation in metres (camera: right, down, forward), inliers
    with open(f"{folder}/model.json", encoding="utf-8") as file:
        rules = json.load(file)
    obj, (points, pixel) = np.array(rules["keypoints_m"]), keypoints(folder, image, rules)
    found = cv2.solvePnPRansac(obj, points, K, None, reprojectionError=4 * pixel, iterationsCount=1000)
    which = found[3][:, 0] if found[0] else sys.exit("no pose fits the keypoints")
    return *cv2.solvePnPRefineLM(obj[which], points[which], K, None, *found[1:3]), which


if __name__ == "__main__":
    folder, photo, f = sys.argv[1:] if len(sys.argv) == 4 else sys.exit(__doc__)
    picture = cv2.cvtColor(cv2.imread(photo), cv2.COLOR_BGR2RGB)
    x, y = (np.array(picture.shape[1::-1]) - 1) / 2
    print(*pose(folder, picture, np.array([[float(f), 0, x], [0, float(f), y], [0, 0, 1]])))
