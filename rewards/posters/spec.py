"""What a poster must show, and the caption that says so in English or Chinese."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

RGB = tuple[int, int, int]

BACKGROUNDS: dict[str, RGB] = {
    "cream": (246, 236, 212),
    "navy": (26, 38, 84),
    "mint": (150, 218, 186),
    "pink": (246, 176, 194),
    "gray": (120, 126, 136),
}
COLORS: dict[str, RGB] = {
    "red": (212, 36, 44),
    "orange": (244, 138, 20),
    "yellow": (252, 214, 44),
    "green": (30, 140, 66),
    "blue": (40, 104, 228),
    "purple": (134, 56, 186),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring")
POSITIONS = ("left", "center", "right")
LAYOUTS = ("plain", "frame", "band")
MARKS = ("dots", "dashes", "crosses")
LATIN_WORDS = ("TEA", "SUN", "ART", "NEW", "HOT", "RUN")
HAN_WORDS = ("山水", "日月", "木工", "大吉", "中古", "上田")
HEADLINES = ("none", *MARKS, *LATIN_WORDS, *HAN_WORDS)
BUTTONS = ("none", "red", "yellow", "blue")

CHOICES: dict[str, tuple[str, ...]] = {
    "background": tuple(BACKGROUNDS),
    "shape": SHAPES,
    "color": tuple(COLORS),
    "position": POSITIONS,
    "headline": HEADLINES,
    "button": BUTTONS,
    "layout": LAYOUTS,
}


@dataclass(frozen=True, order=True)
class PosterSpec:
    """One poster. Every field is a word of `CHOICES`; anything else is a ValueError."""

    background: str
    shape: str
    color: str
    position: str
    headline: str
    button: str
    layout: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value, choices = getattr(self, field.name), CHOICES[field.name]
            if value not in choices:
                raise ValueError(f"poster {field.name}: got {value!r}, expected one of {choices}")

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    @property
    def split(self) -> str:
        """``train`` (80 %), ``validation`` (10 %) or ``test`` (10 %), by a hash of the fields.

        The two captions of one specification therefore always share a split.
        """
        key = "|".join(asdict(self).values()).encode()
        bucket = int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big") % 10
        return {8: "validation", 9: "test"}.get(bucket, "train")


def random_spec(
    rng: random.Random,
    *,
    split: str | None = None,
    headlines: Sequence[str] = (*LATIN_WORDS, *HAN_WORDS),
    buttons: Sequence[str] = BUTTONS,
    layouts: Sequence[str] = LAYOUTS,
) -> PosterSpec:
    """Draw a specification uniformly, from one split when it is named."""
    while True:
        spec = PosterSpec(
            background=rng.choice(list(BACKGROUNDS)),
            shape=rng.choice(SHAPES),
            color=rng.choice(list(COLORS)),
            position=rng.choice(POSITIONS),
            headline=rng.choice(list(headlines)),
            button=rng.choice(list(buttons)),
            layout=rng.choice(list(layouts)),
        )
        if split is None or spec.split == split:
            return spec


_ZH = {
    "cream": "米色", "navy": "藏青", "mint": "薄荷", "pink": "粉色", "gray": "灰色",
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色",
    "purple": "紫色", "circle": "圆形", "square": "方形", "triangle": "三角形", "star": "星形",
    "heart": "心形", "ring": "圆环", "left": "左边", "center": "中间", "right": "右边",
    "dots": "圆点", "dashes": "横线", "crosses": "十字",
}  # fmt: skip
_LAYOUT_EN = {"plain": "poster", "frame": "framed poster", "band": "banded poster"}
_LAYOUT_ZH = {"plain": "海报", "frame": "边框海报", "band": "横幅海报"}


def caption(spec: PosterSpec, lang: str) -> str:
    """The caption of ``spec``; ``lang`` is ``en`` or ``zh``."""
    if lang == "en":
        parts = [f"a {spec.background} {_LAYOUT_EN[spec.layout]}"]
        parts.append(f"a {spec.color} {spec.shape} on the {spec.position}")
        if spec.headline != "none":
            parts.append(f"headline {_quote(spec.headline)}")
        if spec.button != "none":
            parts.append(f"a {spec.button} button")
        return ", ".join(parts)
    if lang == "zh":
        parts = [f"{_ZH[spec.background]}{_LAYOUT_ZH[spec.layout]}"]
        parts.append(f"{_ZH[spec.position]}{_ZH[spec.color]}{_ZH[spec.shape]}")
        if spec.headline != "none":
            parts.append(f"标题{_quote(_ZH.get(spec.headline, spec.headline))}")
        if spec.button != "none":
            parts.append(f"{_ZH[spec.button]}按钮")
        return "，".join(parts)
    raise ValueError(f"caption language: got {lang!r}, expected 'en' or 'zh'")


def parse_caption(text: str) -> PosterSpec:
    """The specification that a caption describes: the inverse of `caption`.

    Raises:
        ValueError: the text is not a caption of the poster world.
    """
    english = text.startswith("a ")
    parts = [part.strip() for part in text.split("," if english else "，")]
    try:
        return _parse_english(parts) if english else _parse_chinese(parts)
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(f"not a poster caption: {text!r} ({error})") from error


def _parse_english(parts: list[str]) -> PosterSpec:
    _, background, layout = parts[0].split(" ", 2)
    _, color, shape, _, _, position = parts[1].split(" ")
    rest = dict.fromkeys(("headline", "button"), "none")
    for part in parts[2:]:
        if part.startswith("headline "):
            rest["headline"] = _unquote(part.removeprefix("headline "))
        else:
            rest["button"] = part.split(" ")[1]
    return PosterSpec(
        background=background, shape=shape, color=color, position=position,
        layout=_invert(_LAYOUT_EN)[layout], **rest,
    )  # fmt: skip


def _parse_chinese(parts: list[str]) -> PosterSpec:
    word = _invert(_ZH)
    rest = dict.fromkeys(("headline", "button"), "none")
    for part in parts[2:]:
        if part.startswith("标题"):
            headline = _unquote(part.removeprefix("标题"))
            rest["headline"] = word.get(headline, headline)
        else:
            rest["button"] = word[part.removesuffix("按钮")]
    return PosterSpec(
        background=word[parts[0][:2]], layout=_invert(_LAYOUT_ZH)[parts[0][2:]],
        position=word[parts[1][:2]], color=word[parts[1][2:4]], shape=word[parts[1][4:]], **rest,
    )  # fmt: skip


def _quote(headline: str) -> str:
    return f"“{headline}”"


def _unquote(text: str) -> str:
    return text.strip("“”")


def _invert(table: dict[str, str]) -> dict[str, str]:
    return {value: key for key, value in table.items()}
