"""Attention All Microbes: transformers for 16S amplicon studies."""

__version__ = "0.1.0"
