"""The commands of `id2`, a module for each kind of work."""
