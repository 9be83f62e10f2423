"""The poster world: a small visual domain whose truth is known.

A `PosterSpec` says what a poster must show; a caption in English or Chinese says the same in
words; `draw` paints it, perfectly or with graded defects; the `ruler` reads a picture back and
scores it on aesthetics, instruction following and detail fidelity. The ruler belongs to
evaluation alone: no reward, no designer and no trainer may import it.
"""
