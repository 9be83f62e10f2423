"""What is measured, against what, and how a figure gets into the documents. See README.md."""
