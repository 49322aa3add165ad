"""The tables and figures of the paper, measured anew: one module for each or for a few of a kind."""
