"""scvec: an embedding store and retrieval toolkit for single-cell RNA-seq."""

__version__ = "0.1.0"
