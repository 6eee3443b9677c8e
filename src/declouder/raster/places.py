"""Whether two rasters of one size lie at one place."""

from __future__ import annotations

from rasterio.transform import Affine, xy

from declouder.raster.info import RasterInfo

APART_PX = 0.01
"""Corners that differ by no more are the same: writers round."""


def lie_alike(info: RasterInfo, like: RasterInfo, *, within_px: float = APART_PX) -> bool:
    """Return whether two rasters of one size lie on each other, by their own word."""
    return bool(info.crs == like.crs) and same_corners(
        info.transform, like.transform, width=like.width, height=like.height, within_px=within_px
    )


def same_corners(transform: Affine, like: Affine, *, width: int, height: int, within_px: float = APART_PX) -> bool:
    """Return whether two rasters of one size have the same corners, in whatever CRS."""
    most = within_px * max(abs(like.a), abs(like.b))
    corners = ((0, 0), (0, width), (height, width))  # row, column; two leave it open which way is up
    return all(
        abs(a - b) <= most
        for corner in corners
        for a, b in zip(xy(transform, *corner), xy(like, *corner), strict=True)
    )
