"""Genes: their names, files of genes, and texts composed from facts."""
