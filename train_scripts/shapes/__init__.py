"""The embedded base: a procedural world of captioned scenes, and the trainers of the small Stable Diffusion made on it."""
