"""How the bundled models, W and demo were made; not part of the installed package."""
