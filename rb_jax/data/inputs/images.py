"""Pictures in and out: files to 8-bit sRGB arrays, and back.

A picture from outside may be broken or hostile, so its format and size are read from the header
and checked before anything is decoded. Pillow's own guard is a process-wide setting that only
warns between one and two times its limit; the plugins are therefore opened directly.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from rb_jax.errors import InputError
from rb_jax.files import check_writable as folder_writable
from rb_jax.files import reason, whole_file, writing

T = TypeVar("T")
Picture = Image.Image | np.ndarray | str | os.PathLike[str]

MAX_PIXELS = 40_000_000
MAX_SIDE = 30_000
MAX_FILE_BYTES = 512 * 2**20

# Leading bytes -> the plugin that reads the format. RIFF is also AVI and WAV: see _plugin.
_READERS = [
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
    (b"GIF87a", GifImagePlugin.GifImageFile),
    (b"GIF89a", GifImagePlugin.GifImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II*\x00", TiffImagePlugin.TiffImageFile),
    (b"MM\x00*", TiffImagePlugin.TiffImageFile),
    (b"II+\x00", TiffImagePlugin.TiffImageFile),  # BigTIFF
]
_WRITERS = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 95}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
}
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # how a stored picture is turned to stand as it should; from 5 on, sides swap
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "H W 3"]:
    """The picture in a file, upright, as 8-bit sRGB; InputError if there is none to be had."""
    return decode_image(read_picture(path), str(path))


def read_picture(path: str | os.PathLike[str]) -> bytes:
    """The content of a picture's file; InputError if it cannot be read or is too large."""
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give the path of a picture")
        if not path.exists():
            raise InputError(f"{path}: no such file")
        if not path.is_file():
            raise InputError(f"{path}: is not a regular file; give the path of a picture")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB; use a smaller file")
        return path.read_bytes()
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise InputError(f"{str(path)!r}: cannot be read ({reason(error)})") from error


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes PNG, JPEG, WebP, BMP, TIFF or the first frame of a GIF.

    ``name`` is what messages call the picture. Transparency is laid over white, EXIF rotation and
    an embedded colour profile are applied, 16-bit values are scaled (not clipped) to 8 bits.
    Raises InputError for another format, a damaged file, or more than 40 megapixels.
    """
    return _decoded(data, name, to_pixels)


def decode_resized(
    data: bytes, name: str, height: int, width: int, keep: tuple[float, float] = (1.0, 1.0)
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """As ``decode_image``, then stretched to a size, antialiased (bicubic).

    ``keep`` is the share of the height and of the width that is used, about the centre. A JPEG
    that is at least twice as large both ways is decoded at 1/2, 1/4 or 1/8 of its size: nearly the
    same pixels in a fraction of the time.
    """
    return _decoded(data, name, lambda image: _resized(image, (height, width), keep))


def picture_size(data: bytes, name: str) -> tuple[int, int]:
    """Height and width of the upright picture, from its header; InputError as ``decode_image``."""

    def size(image: Image.Image) -> tuple[int, int]:
        width, height = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            return height, width  # of the picture as turned
        if isinstance(image, PngImagePlugin.PngImageFile) and "exif" not in image.info:
            return height, width  # Pillow would decode it all to look for EXIF at its end
        return (width, height) if _turned(image) > 4 else (height, width)

    return _decoded(data, name, size)


def _decoded(data: bytes, name: str, read: Callable[[Image.Image], T]) -> T:
    """What ``read`` gives for the opened, not yet decoded picture, once its size is checked."""
    plugin = _plugin(data, name)
    # Damaged files raise nearly every exception there is from inside Pillow, hence the width.
    try:
        image = plugin(io.BytesIO(data))
    except Exception as error:
        if plugin is TiffImagePlugin.TiffImageFile and "pixel mode" in str(error):
            raise InputError(
                f"{name}: a TIFF with a kind of pixels that is not read here, such as colours as "
                "floating-point numbers; save it with 8 or 16 bits per channel"
            ) from error
        raise InputError(f"{name}: damaged picture ({reason(error)})") from error
    with image:
        _check_size(image, name)
        try:
            return read(image)
        except Exception as error:
            raise InputError(f"{name}: damaged or cut-off picture ({reason(error)})") from error


def _resized(image: Image.Image, shape: tuple[int, int], keep: tuple[float, float]) -> np.ndarray:
    """Resized as it is stored and then turned upright: the smaller picture is turned faster."""
    jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
    if not jpeg:  # TIFF is turned by loading it; a PNG may have its EXIF at the end
        image.load()
    turned = _turned(image)
    if turned > 4:
        shape, keep = (shape[1], shape[0]), (keep[1], keep[0])
    (height, width), (keep_y, keep_x) = shape, keep
    extent: tuple[float, ...] = image.size
    if jpeg:
        scaled = image.draft(None, (math.ceil(width / keep_x), math.ceil(height / keep_y)))
        extent = scaled[1][2:] if scaled else extent  # the last pixels may be only partly covered
        image.load()
    image = _flatten(_to_srgb(image))
    (left, right), (top, bottom) = (
        (n * (1 - k) / 2, n * (1 + k) / 2) for n, k in zip(extent, (keep_x, keep_y), strict=True)
    )
    image = image.resize((width, height), Image.Resampling.BICUBIC, (left, top, right, bottom))
    return np.array(image.transpose(_UPRIGHT[turned]) if turned > 1 else image, dtype=np.uint8)


def to_pixels(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """An opened picture upright, on white, as 8-bit sRGB: what ``open_image`` makes of a file."""
    image.load()
    return np.array(_flatten(_to_srgb(_upright(image))), dtype=np.uint8)


def as_pixels(image: Picture) -> UInt8[np.ndarray, "H W 3"]:
    """Any form of a picture as an array; InputError for an array that is no uint8 [H, W, 3]."""
    if isinstance(image, (str, os.PathLike)):
        return open_image(Path(image))
    if isinstance(image, Image.Image):
        return to_pixels(image)
    if not isinstance(image, np.ndarray):
        kind = type(image).__name__
        raise InputError(f"an image is a path, a PIL image or an array, not {kind}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise InputError(f"an image array is uint8 [H, W, 3], not {image.dtype} {image.shape}")
    return image


def to_square(
    pixels: UInt8[np.ndarray, "H W 3"], size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Stretches a picture to the model's square, antialiased."""
    if pixels.shape[:2] == (size, size):
        return pixels.copy()
    resized = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
    return np.array(resized, dtype=np.uint8)


def from_square(
    edited: UInt8[np.ndarray, "S S 3"], height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Stretches an edited square back to the size of the picture it was made from."""
    if edited.shape[:2] == (height, width):
        return edited.copy()
    resized = Image.fromarray(edited).resize((width, height), Image.Resampling.LANCZOS)
    return np.array(resized, dtype=np.uint8)


def to_source_size(
    edited: UInt8[np.ndarray, "S S 3"],
    codec: UInt8[np.ndarray, "S S 3"],
    source: UInt8[np.ndarray, "H W 3"],
) -> UInt8[np.ndarray, "H W 3"]:
    """The edit at the source's size.

    A picture larger than the model's square keeps its own detail where nothing was edited: only
    the difference that the edit makes to the codec's version of the source is enlarged and added.
    """
    height, width = source.shape[:2]
    if (height, width) == edited.shape[:2]:
        return edited
    if height * width < edited.shape[0] * edited.shape[1]:
        return from_square(edited, height, width)
    change = edited.astype(np.float32) - codec.astype(np.float32)
    planes = [
        Image.fromarray(np.ascontiguousarray(change[..., c])).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for c in range(3)
    ]
    added = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return np.clip(np.round(source + added), 0, 255).astype(np.uint8)


def save_image(
    path: str | os.PathLike[str], pixels: UInt8[np.ndarray, "H W 3"], sync: bool = True
) -> None:
    """Writes a picture in the format of the path's suffix; the file appears whole or not at all.

    Raises InputError for an unknown suffix, a missing folder, or a file that cannot be written.
    """
    path = Path(path)
    check_writable(path)
    kind, options = _WRITERS[path.suffix.lower()]
    with whole_file(path, sync=sync) as partial, writing(path), open(partial, "xb") as file:
        Image.fromarray(pixels).save(file, kind, **options)


def check_writable(path: str | os.PathLike[str]) -> None:
    """InputError if ``save_image`` could not write here: asked before the work, not after."""
    path = Path(path)
    with writing(path):
        if path.is_dir():
            raise InputError(
                f"{path}: is a folder; give the name of a file, such as {path}/out.png"
            )
        known = " ".join(_WRITERS)
        if not path.suffix:
            raise InputError(f"{path}: has no suffix to say the format; use one of {known}")
        if path.suffix.lower() not in _WRITERS:
            raise InputError(f"{path}: unknown picture suffix {path.suffix!r}; use one of {known}")
        if not path.parent.is_dir():
            raise InputError(f"{path}: the folder {path.parent} does not exist; create it first")
    folder_writable(path.parent)


def _plugin(data: bytes, name: str):
    if not data:
        raise InputError(f"{name}: empty file")
    if data.startswith(b"MM\x00+"):
        raise InputError(f"{name}: a big-endian BigTIFF, which is not read here; save it as TIFF")
    for magic, plugin in _READERS:
        if data.startswith(magic) and (magic != b"RIFF" or data[8:12] == b"WEBP"):
            return plugin
    raise InputError(
        f"{name}: not a picture this program reads; use PNG, JPEG, WebP, BMP, TIFF, GIF"
    )


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise InputError(f"{name}: the picture is {width} x {height} pixels, nothing to see")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        limit = f"{MAX_PIXELS // 10**6} megapixels and {MAX_SIDE} a side"
        raise InputError(f"{name}: {width} x {height} pixels; the limit is {limit}: scale it down")


def _turned(image: Image.Image) -> int:
    """The EXIF orientation: a key of _UPRIGHT, or 1."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a picture with unreadable EXIF is still a picture
        return 1
    return orientation if isinstance(orientation, int) and orientation in _UPRIGHT else 1


def _upright(image: Image.Image) -> Image.Image:
    turned = _turned(image)
    return image if turned == 1 else _keep_info(image.transpose(_UPRIGHT[turned]), image)


def _keep_info(image: Image.Image, original: Image.Image) -> Image.Image:
    image.info = dict(original.info)
    return image


def _to_srgb(image: Image.Image) -> Image.Image:
    """Applies the embedded ICC profile, if there is a usable one."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "L", "CMYK"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        target = ImageCms.createProfile("sRGB")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(image, source, target, outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # a profile that does not fit its picture is ignored, as viewers do
    return image if converted is None else converted


def _flatten(image: Image.Image) -> Image.Image:
    """Any mode to RGB on white."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8bit(image)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode == "LAB":
        target = ImageCms.createProfile("sRGB")
        rgb = ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), target, outputMode="RGB"
        )
        return image.convert("RGB") if rgb is None else rgb
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8bit(image: Image.Image) -> UInt8[np.ndarray, "H W"]:
    """Integer and float grey levels to 8 bits.

    16-bit files span 0..65535. The range of 32-bit and float files is not written in them:
    values within [0, 1], [0, 255] and [0, 65535] are taken to use that range (the first two only
    for floats); anything else is stretched from its minimum to its maximum.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    top = next((r for r in ranges if high <= r), None) if low >= 0 else None
    if top is None:
        values, top = values - low, max(high - low, 1e-12)
    return np.rint(values * (255.0 / top)).astype(np.uint8)
