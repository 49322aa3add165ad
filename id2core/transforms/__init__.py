"""The matrix W, and experimental networks in its place."""
