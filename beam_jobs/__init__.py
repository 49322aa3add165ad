"""Beam pipelines: how the work of a run is spread out."""
