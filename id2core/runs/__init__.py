"""One execution: its plan, its parts, the commit behind them, and how far it is."""
