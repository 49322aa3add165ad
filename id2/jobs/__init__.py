"""The work behind the functions of `id2`, one module each; loaded when a function is called."""
