"""Frozen image encoders, and what turns a file into their input."""
