"""stub"""

import gradio as gr


def review_blocks(store):
    with gr.Blocks(title="Winsome review") as blocks:
        gr.Markdown("# Review")
    return blocks
