"""The embedded base: captioned scenes drawn by program, and a small Stable Diffusion trained on them."""
