"""SAFER on Ray: a language model that reasons about explicit safety rules before it answers."""

__version__ = "0.1.0"
