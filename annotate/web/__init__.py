"""The labelling app: FastAPI owns login, ``/api`` and ``/media``; Gradio is mounted inside."""
