"""Service discovery and edge routing for containers on a handful to a few hundred hosts."""

from importlib.metadata import version

__version__ = version("discovery")
