"""Image-to-image translation: diffusion models, paradigms, prompts, and the rows that result."""
