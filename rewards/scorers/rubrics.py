"""What a judge is told: a rubric for each criterion, in English and Chinese."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["RUBRICS", "Language", "Rubric", "pairwise_text", "pointwise_text"]

Language = Literal["en", "zh"]


@dataclass(frozen=True, slots=True)
class Rubric:
    """What one criterion asks for; the same in both languages."""

    en: str
    zh: str
    edit_en: str = ""
    """Instead of ``en`` where the brief edits pictures; empty: ``en`` holds there too."""
    edit_zh: str = ""
    """The same of ``zh``."""

    def text(self, language: Language, edits: bool) -> str:
        drawing, editing = (self.zh, self.edit_zh) if language == "zh" else (self.en, self.edit_en)
        return editing if edits and editing else drawing


RUBRICS = {
    "aesthetics": Rubric(
        en=(
            "Aesthetics: is it a picture that a professional designer would sign? Composition and "
            "balance, harmony and contrast of colours, light, hierarchy and spacing of elements, "
            "typography that fits the mood. Do not judge whether it shows what was asked for. Low: "
            "cluttered, muddy or garish, out of balance. High: could be published as it is."
        ),
        zh=(
            "美学：专业设计师是否愿意为它署名？看构图与平衡、色彩的和谐与对比、光影、元素的层次与留白、"
            "字体与气质是否相配。不考虑画面是否符合要求。低分：杂乱、灰暗或俗艳、失衡。高分：可以直接发布。"
        ),
    ),
    "instruction": Rubric(
        en=(
            "Instruction following: is everything there that the brief asks for, and nothing "
            "that contradicts it? Subjects and their number, attributes, positions and relations, "
            "style, every text letter by letter. Do not judge beauty. Low: the subject or a text "
            "is missing or wrong. High: every statement of the brief holds."
        ),
        zh=(
            "指令遵循：要求中的每一项是否都在，且没有相矛盾的内容？看主体及其数量、属性、位置与关系、风格，"
            "以及每一处文字是否逐字正确。不考虑美观。低分：主体或文字缺失或错误。高分：要求的每一句都成立。"
        ),
        edit_en=(
            "Instruction following: is everything done that the brief asks for, and all else kept "
            "as the source has it? In what was to change: subjects and their number, attributes, "
            "positions and relations, style, every text letter by letter. In what was not: who and "
            "what is shown, layout, colours, texts, background. Do not judge beauty. Low: the edit "
            "is missing or wrong, or something else changed, too; an unchanged copy is the lowest. "
            "High: all of the edit is done and nothing else differs."
        ),
        edit_zh=(
            "指令遵循：要求的修改是否全部完成，且其余一切与原图一致？应改之处看主体及其数量、属性、位置与关系、"
            "风格，以及每一处文字是否逐字正确；不应改之处看人与物是否仍是原来的、布局、颜色、文字与背景是否保持原样。"
            "不考虑美观。低分：没有修改或改错，或改动了未要求的内容；原样照搬为最低分。"
            "高分：修改全部完成，其余毫无改变。"
        ),
    ),
    "detail": Rubric(
        en=(
            "Detail fidelity: does it stand a close look? Sharp edges, clean textures, whole "
            "shapes, hands, faces and letters without deformation, no noise, blur, grids, seams or "
            "melted parts. Do not judge taste or content. Low: faults are seen at a glance. High: "
            "none is found at full size."
        ),
        zh=(
            "细节保真：是否经得起近看？看边缘是否清晰、纹理是否干净、形状是否完整，手、脸与字是否变形，"
            "有无噪点、模糊、网格、接缝或融化的部分。不考虑品味与内容。低分：一眼可见瑕疵。高分：原尺寸下找不到瑕疵。"
        ),
    ),
}


def pointwise_text(
    rubric: Rubric, prompt: str, scale: int, language: Language, num_sources: int = 0
) -> tuple[str, str]:
    """What the system and the user say before the source images, if any, and the image; the answer
    is one digit."""
    told = rubric.text(language, num_sources > 0)
    if language == "zh":
        task = "请为这张图像打分："
        if num_sources:
            task = f"{_sources_zh(num_sources)}，最后一张是编辑结果。请为编辑结果打分："
        return (
            f"你是资深平面设计师，只按以下标准评判图像。\n{told}\n"
            f"只回答一个数字，从 1（最差）到 {scale}（最好），不要写其他内容。",
            f"设计要求：\n{prompt}\n\n{task}",
        )
    task = "Rate this image:"
    if num_sources:
        task = f"{_sources_en(num_sources)}; the last image is the result. Rate the result:"
    return (
        "You are a senior graphic designer and judge images by this rubric alone.\n"
        f"{told}\n"
        f"Answer with one digit from 1 (worst) to {scale} (best) and nothing else.",
        f"The brief:\n{prompt}\n\n{task}",
    )


def pairwise_text(
    rubric: Rubric, prompt: str, language: Language, num_sources: int = 0
) -> tuple[str, str]:
    """What the system and the user say before the source images, if any, and images A and B; the
    answer is one letter."""
    told = rubric.text(language, num_sources > 0)
    if language == "zh":
        before = f"{_sources_zh(num_sources)}，其后是两个编辑结果：" if num_sources else ""
        return (
            f"你是资深平面设计师，只按以下标准比较两张图像。\n{told}\n"
            "只回答 A 或 B：哪一张更好。不要写其他内容。",
            f"设计要求：\n{prompt}\n\n{before}先是图像 A，后是图像 B。哪一张更好？",
        )
    before = ""
    if num_sources:
        before = f"{_sources_en(num_sources)}; then come two results. "
    return (
        "You are a senior graphic designer and compare two images by this rubric alone.\n"
        f"{told}\n"
        "Answer A or B, whichever is better, and nothing else.",
        f"The brief:\n{prompt}\n\n{before}Image A comes first, image B second. Which is better?",
    )


def _sources_en(count: int) -> str:
    if count == 1:
        return "The first image is the source that the brief edits"
    return f"The first {count} images are the sources that the brief edits, in its order"


def _sources_zh(count: int) -> str:
    return "第一张图像是要编辑的原图" if count == 1 else f"前 {count} 张图像依次是要编辑的原图"
