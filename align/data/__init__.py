"""What the loops are fed: rows of images, pairs and prompts, their order, and encoded features."""
