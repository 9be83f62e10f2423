"""Reading the text in an image and holding it against the text that was asked for."""
