"""Pictures, brought to the size, the order of axes and the numbers that a model takes."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from onnxshrink.errors import DataError
from onnxshrink.reading import Reading, Resize
from onnxshrink.runtime.inputs.fitting import Note
from onnxshrink.runtime.inputs.ports import Feed, Found, Port, lacking

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_FRAME = 114  # the grey that YOLO models are trained with
_MOST_ROWS = 4  # pictures of one feed where there are more of them than feeds
_PIXELS = 2.0  # a mean or deviation beyond it is one of 0 to 255


@dataclass(frozen=True)
class Normalized:
    """What is done to pixels of 0 to 255: times ``scale``, minus ``mean``, over ``std``."""

    scale: float
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: Resize = "fill"


#: As torchvision, OpenAI's CLIP and Ultralytics' YOLO prepare pictures.
PRESETS = {
    "imagenet": Normalized(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": Normalized(
        1 / 255, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    ),
    "yolo": Normalized(1 / 255, resize="fit"),
    "zero-one": Normalized(1 / 255),
}


@dataclass(frozen=True)
class Frame:
    """The shape of one picture as the model takes it.

    Attributes:
        port: The input.
        layout: Where the channels are; ``hw``: there is no axis for them.
        batched: Whether an axis in front counts pictures.
    """

    port: Port
    layout: Literal["nchw", "nhwc", "hw"]
    batched: bool
    channels: int
    height: int
    width: int


class Pictures:
    """Makes feeds of pictures.

    Args:
        wanted: The model's inputs; one of them takes pictures.
        reading: What the user says of them.
        note: Told what was taken for granted.
    """

    def __init__(self, wanted: Mapping[str, Port], reading: Reading, note: Note):
        self._wanted = wanted
        self._reading = reading
        self._note = note

    def read(self, files: Sequence[Path], limit: int | None) -> Iterator[Found]:
        """Feeds of picture files; each file is opened when its feed is asked for."""
        frame = self.frame
        fixed = frame.port.fixed(0) if frame.batched else 1
        rows = fixed or min(max(len(files) // (limit or len(files)), 1), _MOST_ROWS)
        if len(files) < rows:
            raise DataError(f"{files[0]}: the model takes {rows} pictures at once: give as many")
        for start in range(0, len(files) - rows + 1, rows):
            part = files[start : start + rows]
            where = str(part[0]) if rows == 1 else f"{part[0]} and {rows - 1} more"
            yield where, functools.partial(self._feed, part)

    def array(self, image: Image, where: str) -> np.ndarray:
        """One picture as the input takes it, with its first axis where it has one."""
        with _legible(where):
            image.load()
        picture = self._picture(image)
        return picture[None] if self.frame.batched else picture

    def _feed(self, files: Sequence[Path]) -> Feed:
        from PIL import Image

        pictures = []
        for file in files:
            with _legible(str(file)), Image.open(file) as image:
                image.load()
            pictures.append(self._picture(image))
        return {self.frame.port.name: np.stack(pictures) if self.frame.batched else pictures[0]}

    # ---- one picture

    def _picture(self, image: Image) -> np.ndarray:
        from PIL import ImageOps

        frame, how = self.frame, self._normalized
        image = ImageOps.exif_transpose(image).convert(_MODES[frame.channels])
        image = _resized(image, (frame.width, frame.height), self._reading.resize or how.resize)
        pixels = np.asarray(image).reshape(frame.height, frame.width, frame.channels)
        if frame.layout == "hw":
            return self._numbers(pixels)[..., 0]
        if self._reading.color == "bgr" and frame.channels >= 3:
            pixels = pixels[..., [2, 1, 0, *range(3, frame.channels)]]
        numbers = self._numbers(pixels)
        if frame.layout == "nhwc":
            return numbers
        return np.ascontiguousarray(numbers.transpose(2, 0, 1))

    def _numbers(self, pixels: np.ndarray) -> np.ndarray:
        how, dtype = self._normalized, self.frame.port.dtype
        if dtype == pixels.dtype and how == Normalized(1.0):
            return pixels
        mean, std = self._per_channel
        numbers: np.ndarray = (pixels * np.float32(how.scale) - mean) / std
        if dtype.kind in "iu":
            bounds = np.iinfo(dtype)
            numbers = np.clip(np.rint(numbers), bounds.min, bounds.max)
        cast: np.ndarray = numbers.astype(dtype)
        return cast

    def shown(self, feed: Feed) -> Iterator[tuple[str, bytes]]:
        """The pictures of a feed as .png files."""
        from PIL import Image

        array = feed[self.frame.port.name]
        for picture in array if self.frame.batched else array[None]:
            pixels = self._pixels(picture)
            file = io.BytesIO()
            Image.fromarray(pixels[..., 0] if self.frame.channels == 1 else pixels).save(
                file, "png"
            )
            yield ".png", file.getvalue()

    def _pixels(self, picture: np.ndarray) -> np.ndarray:
        """The pixels of 0 to 255 that numbers were made of: [height, width, channels]."""
        frame, how = self.frame, self._normalized
        if frame.layout == "hw":
            picture = picture[..., None]
        elif frame.layout == "nchw":
            picture = picture.transpose(1, 2, 0)
        mean, std = self._per_channel
        numbers: np.ndarray = (picture.astype(np.float32) * std + mean) / how.scale
        if self._reading.color == "bgr" and frame.channels >= 3:
            numbers = numbers[..., [2, 1, 0, *range(3, frame.channels)]]
        pixels: np.ndarray = np.clip(np.rint(numbers), 0, 255).astype(np.uint8)
        return pixels

    @property
    def _per_channel(self) -> tuple[np.ndarray, np.ndarray]:
        how, channels = self._normalized, self.frame.channels
        return _channels(how.mean, channels, 0.0), _channels(how.std, channels, 1.0)

    # ---- what the model takes

    @functools.cached_property
    def frame(self) -> Frame:
        """The shape of a picture.

        Raises:
            DataError: No input takes pictures, or their size is not known.
        """
        try:
            import PIL.Image  # noqa: F401
        except ImportError as error:
            raise lacking("pictures", "Pillow", "images") from error
        port = self._port()
        dims = port.dims or (None,) * 4
        layout, batched = self._layout(dims)
        of_picture = dims[1:] if batched else dims
        if layout == "hw":
            of_picture = (1, *of_picture)
        elif layout == "nhwc":
            of_picture = (of_picture[2], *of_picture[:2])
        channels = of_picture[0] if isinstance(of_picture[0], int) else 3
        if channels not in _MODES:
            raise DataError(
                f"input {port.name!r} takes {port.shown_dims}: not pictures of 1, 3 or 4 channels"
                "; --layout says where channels are"
            )
        height, width = self._size(port, of_picture[1], of_picture[2])
        return Frame(port, layout, batched, channels, height, width)

    def _port(self) -> Port:
        """The input that takes pictures."""
        for axes in (4, 3):
            ports = [
                port for port in self._wanted.values()
                if port.dtype.kind in "fiuV" and len(port.dims or (None,) * 4) == axes
            ]  # fmt: skip
            if len(ports) == 1:
                return ports[0]
        inputs = ", ".join(f"{port.name} {port.shown_dims}" for port in self._wanted.values())
        raise DataError(f"pictures fit no input of the model, or several: {inputs}")

    def _layout(
        self, dims: Sequence[int | str | None]
    ) -> tuple[Literal["nchw", "nhwc", "hw"], bool]:
        """Where the channels are, and whether an axis in front counts pictures."""
        batched = len(dims) == 4
        first, last = (dims[1], dims[3]) if batched else (dims[0], dims[2])
        if self._reading.layout is not None:
            return self._reading.layout, batched
        if first in _MODES:
            return "nchw", batched
        if last in _MODES:
            return "nhwc", batched
        return ("nchw", True) if batched else ("hw", True)

    def _size(self, port: Port, height: object, width: object) -> tuple[int, int]:
        asked = self._reading.image_size
        sides = []
        for fixed, given in zip((height, width), (asked or (None,)) * 2, strict=False):
            side = fixed if isinstance(fixed, int) else given
            if side is None:
                raise DataError(
                    f"input {port.name!r} takes pictures of any size, {port.shown_dims}: give "
                    "--image-size 224, or 480x640 (height x width)"
                )
            if given is not None and side != given:
                raise DataError(
                    f"--image-size {'x'.join(map(str, asked))}: input {port.name!r} takes "
                    f"{port.shown_dims}"
                )
            sides.append(side)
        return sides[0], sides[1]

    @functools.cached_property
    def _normalized(self) -> Normalized:
        """What is done to pixels; what nobody said is taken for granted, and told."""
        reading, port = self._reading, self.frame.port
        if reading.normalize is not None:
            how = PRESETS[reading.normalize]
            scale, mean, std = how.scale, reading.mean or how.mean, reading.std or how.std
        else:
            how = PRESETS["zero-one"]
            mean, std = reading.mean or how.mean, reading.std or how.std
            large = max(map(abs, (*mean, *std))) > _PIXELS
            scale = 1.0 if port.dtype.kind in "iu" or large else how.scale
            if reading.scale is None and not (reading.mean or reading.std):
                self._note(
                    f"pictures go into {port.name!r} as numbers of 0 to {255 * scale:.0f}, "
                    f"{self.frame.layout.upper()}, {self.frame.height}x{self.frame.width}; "
                    "--normalize imagenet, clip or yolo, --mean and --std say otherwise"
                )
        for name, values in (("mean", mean), ("std", std)):
            if name in reading.given and len(values) not in (1, self.frame.channels):
                raise DataError(
                    f"--{name} has {len(values)} numbers for {self.frame.channels} channels"
                )
        if reading.scale is not None:
            scale = reading.scale
        return Normalized(scale, mean, std, how.resize)


def _channels(values: tuple[float, ...], channels: int, rest: float) -> np.ndarray:
    """A number for each channel: grey pictures get the mean of a preset's three, alpha the rest."""
    if channels == 1:
        values = (sum(values) / len(values),)
    elif 1 < len(values) < channels:
        values = (*values, rest)
    return np.array(values, np.float32)


def _resized(image: Image, size: tuple[int, int], how: Resize) -> Image:
    """A picture of a size (width, height)."""
    from PIL import Image as pillow
    from PIL import ImageOps

    if image.size == size:
        return image
    way = pillow.Resampling.BILINEAR
    if how == "stretch":
        return image.resize(size, way)
    if how == "fill":
        return ImageOps.fit(image, size, way)
    color = (_FRAME,) * len(image.getbands())
    return ImageOps.pad(image, size, way, color=color if len(color) > 1 else _FRAME)


@contextlib.contextmanager
def _legible(where: str) -> Iterator[None]:
    """Turn what Pillow raises about a damaged picture into one error."""
    from PIL import Image as pillow

    try:
        yield
    except (
        OSError, ValueError, SyntaxError, EOFError, struct.error, MemoryError,
        pillow.DecompressionBombError, pillow.DecompressionBombWarning,
    ) as error:  # fmt: skip
        raise DataError(f"{where}: not a picture that can be read: {error}") from error
