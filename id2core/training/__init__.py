"""Training of the embedded VAE and of the transform W."""
