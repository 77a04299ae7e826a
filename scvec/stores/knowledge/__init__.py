"""The knowledge base of genes in DuckDB."""
