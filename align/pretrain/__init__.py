"""Makes the tiny Qwen-Image: autoencoder, then flow matching in a four-stage curriculum."""
