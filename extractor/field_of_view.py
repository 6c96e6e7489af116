"""The lit disc of a fundus photograph.

A camera lights a disc and leaves the rest black. The disc is found as the largest region above a
threshold between the frame and Otsu's (Otsu 1979), filled to its convex hull: the disc has no
dents. Images that do not show a lit disc in a dark frame, such as OCT angiograms, are field of view
throughout: their corners are bright, or the region has too many holes for a disc.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from extractor.errors import NoFieldOfView

WORKING_SIDE = 512
DARK_FRAME = 48  # a corner brighter than this (of 255) is not a camera's black frame
TOWARDS_OTSU = 0.25  # position of the threshold between the frame's level (0) and Otsu's (1)
MIN_SOLIDITY = 0.85  # least lit share of a disc; it is 0.93 to 1 in photographs, at most 0.67 in OCT angiograms
MIN_AREA = 0.05  # smaller lit regions are reflections, not retinas


def find_field_of_view(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Find the lit disc.

    Args:
        image: uint8 (H, W, 3), RGB.

    Returns:
        bool (H, W), True inside the field of view.

    Raises:
        NoFieldOfView: the image is dark throughout, or its lit part is smaller than 5 % of it.
    """
    height, width = image.shape[:2]
    shrink = min(1.0, WORKING_SIDE / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    shrunk = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    level = np.asarray(cv2.GaussianBlur(_brightness(shrunk), (5, 5), 0), dtype=np.uint8)

    bright = float(np.percentile(level, 98))
    frame = _corner_level(level)
    if bright < 16:
        raise NoFieldOfView(f"too dark, nothing lit was found (98 % of its pixels are at most {bright:.0f} of 255)")
    if frame > DARK_FRAME or frame > 0.5 * bright:
        return np.ones((height, width), dtype=np.bool_)

    otsu, _ = cv2.threshold(level, 0, 255, cv2.THRESH_OTSU)
    lit = (level > frame + max(6.0, TOWARDS_OTSU * (otsu - frame))).astype(np.uint8)
    opening = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    lit = np.asarray(cv2.morphologyEx(lit, cv2.MORPH_OPEN, opening), dtype=np.uint8)
    disc = _largest_region_filled(lit)
    if disc.any() and lit[disc > 0].mean() < MIN_SOLIDITY:
        return np.ones((height, width), dtype=np.bool_)
    if disc.mean() < MIN_AREA:
        raise NoFieldOfView(
            f"the largest lit region covers {100 * disc.mean():.1f} % of the image, "
            f"a field of view covers at least {100 * MIN_AREA:.0f} %"
        )
    return cv2.resize(disc, (width, height), interpolation=cv2.INTER_LINEAR) > 0


def _brightness(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The red channel, in which retinas are bright and film frames are not; in red-free images the brightest one."""
    red, brightest = image[..., 0], np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])
    return red if np.percentile(red, 95) > 0.5 * np.percentile(brightest, 95) else brightest


def _corner_level(level: NDArray[np.uint8]) -> float:
    """Median brightness of the darkest corner but one: a label or a flare may light one or two."""
    side_h, side_w = max(1, level.shape[0] // 20), max(1, level.shape[1] // 20)
    corners = [level[:side_h, :side_w], level[:side_h, -side_w:], level[-side_h:, :side_w], level[-side_h:, -side_w:]]
    return float(sorted(float(np.median(corner)) for corner in corners)[1])


def _largest_region_filled(lit: NDArray[np.uint8]) -> NDArray[np.uint8]:
    contours, _ = cv2.findContours(lit, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(lit)
    if contours:
        hull = cv2.convexHull(max(contours, key=cv2.contourArea))
        cv2.fillConvexPoly(filled, hull, 1)
    return filled
