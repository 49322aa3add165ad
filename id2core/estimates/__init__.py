"""What a corpus costs: machine hours, wall time, and bytes, from unit rates that benchmarks measure."""
