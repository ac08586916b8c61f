"""HAProxy: from a Catalog to a running, confirmed configuration."""
