"""Health, metrics and the served services over HTTP."""
