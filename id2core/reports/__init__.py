"""The report of a scan: its summary and its page."""
