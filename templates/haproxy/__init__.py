"""The templates of HAProxy's configuration."""
