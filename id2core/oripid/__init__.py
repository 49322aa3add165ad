"""Origins and their altered copies: attacks on images and the bundled demo set."""
