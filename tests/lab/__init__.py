"""Real parts for tests: servers started here, on free ports, and ended by whoever started them."""
