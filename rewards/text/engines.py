"""Engines that read the text of an image: PP-OCRv6, and Tesseract to check it by.

They share nothing: one detects and reads with convolutional networks trained on Chinese scenes,
the other segments pages and reads with its own LSTM. Glyphs made to please one do not please both.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from io import BytesIO
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from rewards.text.targets import normalise

__all__ = ["ENGINES", "PaddleEngine", "TesseractEngine", "TextEngine", "TextLine", "open_engine"]


@dataclass(frozen=True, slots=True)
class TextLine:
    """One line as an engine reads it."""

    text: str
    quad: tuple[tuple[float, float], ...]
    """Corners in pixels of the image: top left, top right, bottom right, bottom left of the box."""
    confidence: float
    angle: float = 0.0
    """Direction of reading in degrees, clockwise: 0 is upright, 90 reads downwards on its side."""
    is_vertical: bool = False
    """Upright characters, one under the other."""

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        xs, ys = zip(*self.quad, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def height(self) -> float:
        """Of the characters, in pixels: the box's shorter side."""
        a, b, _, d = (np.asarray(corner) for corner in self.quad)
        return float(min(np.linalg.norm(b - a), np.linalg.norm(d - a)))


class TextEngine(Protocol):
    """Reads the lines of an RGB image, in any order."""

    name: str
    version: str
    """Changes with the weights."""

    def read(self, image: Image) -> list[TextLine]: ...


class PaddleEngine:
    """PP-OCRv6 small by ``rapidocr``, whose wheel holds the weights.

    https://github.com/RapidAI/RapidOCR, Apache-2.0.
    """

    name = "ppocr_v6"

    def __init__(self, num_threads: int = 0, min_confidence: float = 0.3):
        """
        Args:
            num_threads: of ONNX Runtime; 0 takes all cores.
            min_confidence: lines below it are texture rather than text.
        """
        import rapidocr

        self._threads = num_threads or -1
        self._min_confidence = min_confidence
        models = sorted((Path(rapidocr.__file__).parent / "models").glob("*.onnx"))
        digest = hashlib.sha256(b"".join(hashlib.sha256(m.read_bytes()).digest() for m in models))
        self.version = f"{version('rapidocr')}-{digest.hexdigest()[:12]}-{min_confidence}"

    @cached_property
    def _ocr(self) -> Any:
        from rapidocr import RapidOCR

        threads = "EngineConfig.onnxruntime.intra_op_num_threads"
        return RapidOCR(params={"Global.log_level": "critical", threads: self._threads})

    def read(self, image: Image) -> list[TextLine]:
        """See `TextEngine`."""
        from rapidocr.utils.process_img import get_rotate_crop_image

        # OpenCV's order of channels, which the networks were trained on.
        pixels = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
        boxes = self._ocr(pixels, use_det=True, use_cls=False, use_rec=False).boxes
        if boxes is None or len(boxes) == 0:
            return []
        quads = [np.asarray(box, dtype=np.float32) for box in boxes]
        # Boxes taller than wide by a half come out turned, so that they read downwards.
        crops = [get_rotate_crop_image(pixels, quad.copy()) for quad in quads]
        turned, flips = self._ocr.cls_and_rotate(crops)
        read = self._ocr.recognize_txt(list(turned))
        lines = []
        for quad, flip, text, confidence in zip(
            quads, flips.cls_res, read.txts, read.scores, strict=True
        ):
            if confidence >= self._min_confidence and normalise(text):
                upside_down = flip[0] == "180" and flip[1] >= self._ocr.cfg.Cls.cls_thresh
                lines.append(self._line(pixels, quad, upside_down, text, float(confidence)))
        return lines

    def _line(
        self,
        pixels: NDArray[np.uint8],
        quad: NDArray[np.float32],
        upside_down: bool,
        text: str,
        confidence: float,
    ) -> TextLine:
        corners = tuple((float(x), float(y)) for x, y in quad)
        width = np.linalg.norm(quad[1] - quad[0])
        height = np.linalg.norm(quad[3] - quad[0])
        along = quad[3] - quad[0] if height >= 1.5 * width else quad[1] - quad[0]
        angle = math.degrees(math.atan2(along[1], along[0])) + (180.0 if upside_down else 0.0)
        angle = (angle + 180.0) % 360.0 - 180.0
        if height >= 1.5 * width and self._stands_upright(pixels, quad, text):
            return TextLine(text, corners, confidence, 0.0, is_vertical=True)
        return TextLine(text, corners, confidence, angle)

    def _stands_upright(
        self, pixels: NDArray[np.uint8], quad: NDArray[np.float32], text: str
    ) -> bool:
        """Whether a tall box holds upright characters: laid side by side, they read the same."""
        characters = [c for c in text if not c.isspace()]
        left, top = np.floor(quad.min(axis=0)).astype(int)
        right, bottom = np.ceil(quad.max(axis=0)).astype(int)
        crop = pixels[max(top, 0) : bottom, max(left, 0) : right]
        if len(characters) < 2 or crop.shape[0] < len(characters):
            return False
        cells = np.array_split(crop, len(characters), axis=0)
        side = min(cell.shape[0] for cell in cells)
        row = np.concatenate([cell[:side] for cell in cells], axis=1)
        [reread] = self._ocr.recognize_txt([np.ascontiguousarray(row)]).txts
        same = sum(a == b for a, b in zip(normalise(reread), normalise(text), strict=False))
        return 2 * same > len(characters)


class TesseractEngine:
    """Tesseract's LSTM for simplified Chinese, which reads Latin too, by its command line.

    Debian: ``tesseract-ocr tesseract-ocr-chi-sim``, Apache-2.0. It tells no angle. Its English
    model beside it would win most single Chinese characters and read them as letters.
    """

    name = "tesseract"

    def __init__(self, min_confidence: float = 0.1, timeout: float = 60.0):
        """
        Args:
            min_confidence: words below it are left out.
            timeout: seconds for one image.
        Raises:
            FileNotFoundError: it is not installed.
        """
        program = shutil.which("tesseract")
        if program is None:
            raise FileNotFoundError(
                "tesseract is not installed: apt-get install tesseract-ocr tesseract-ocr-chi-sim"
            )
        self._program = program
        self._min_confidence = min_confidence
        self._timeout = timeout
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        self.version = f"{done.stdout.split()[1]}-{min_confidence}"

    def read(self, image: Image) -> list[TextLine]:
        """See `TextEngine`.

        Raises:
            RuntimeError: Tesseract failed; has its message.
            subprocess.TimeoutExpired: it took too long.
        """
        buffer = BytesIO()
        image.convert("RGB").save(buffer, "PNG")
        done = subprocess.run(
            [self._program, "stdin", "stdout", "-l", "chi_sim", "--psm", "11", "tsv"],
            input=buffer.getvalue(),
            capture_output=True,
            timeout=self._timeout,
            env={**os.environ, "OMP_THREAD_LIMIT": "1"},
        )
        if done.returncode:
            message = done.stderr.decode(errors="replace").strip()
            raise RuntimeError(f"tesseract ended with status {done.returncode}: {message}")
        rows = [row.split("\t") for row in done.stdout.decode().splitlines()[1:]]
        words = [row for row in rows if len(row) == 12 and row[11].strip() and float(row[10]) >= 0]
        words = [row for row in words if float(row[10]) >= 100 * self._min_confidence]
        return [_tesseract_line(list(line)) for _, line in groupby(words, key=lambda row: row[1:5])]


def _tesseract_line(words: list[list[str]]) -> TextLine:
    text = words[0][11]
    for before, word in pairwise(words):
        apart = before[11][-1:].isascii() and word[11][:1].isascii()
        text += (" " if apart else "") + word[11]
    boxes = np.array([[int(value) for value in word[6:10]] for word in words])
    left, top = boxes[:, 0].min(), boxes[:, 1].min()
    right, bottom = (boxes[:, 0] + boxes[:, 2]).max(), (boxes[:, 1] + boxes[:, 3]).max()
    quad = ((left, top), (right, top), (right, bottom), (left, bottom))
    confidence = float(np.mean([float(word[10]) for word in words])) / 100
    return TextLine(text, tuple((float(x), float(y)) for x, y in quad), confidence)


ENGINES: dict[str, type[PaddleEngine] | type[TesseractEngine]] = {
    engine.name: engine for engine in (PaddleEngine, TesseractEngine)
}


def open_engine(name: str) -> TextEngine:
    """The engine of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in ENGINES:
        raise ValueError(f"unknown text engine {name!r} (choose from {', '.join(sorted(ENGINES))})")
    return ENGINES[name]()
