"""The labelling page: Gradio Blocks with one `gr.HTML`, the canvas."""

from __future__ import annotations

import gradio as gr

from annotate.web.pages import STATIC

# The template is static: Gradio evaluates ${...} in what it renders, so no text of a person may
# enter it. The script fills the page in through textContent.
_START = 'import("/static/js/canvas.js").then((canvas) => canvas.start(element));'


def canvas_blocks() -> gr.Blocks:
    """The Blocks of ``/annotate``. They hold no state: the canvas talks to ``/api`` alone."""
    template = (STATIC / "canvas.html").read_text(encoding="utf-8")
    with gr.Blocks(title="Winsome", analytics_enabled=False) as blocks:
        gr.HTML(html_template=template, js_on_load=_START, apply_default_css=False)
    return blocks
