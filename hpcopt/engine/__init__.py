"""From a config to a finished run: building, the one loop, records, and what surrounds them."""
