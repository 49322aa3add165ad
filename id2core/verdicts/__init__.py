"""Verdicts: background normalization, calibrated thresholds, and the judge that applies both."""
