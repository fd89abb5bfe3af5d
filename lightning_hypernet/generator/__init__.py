"""Generator: latents to weights."""
