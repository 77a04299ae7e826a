"""What lasts: the store, its knowledge base of genes, and its indices."""
