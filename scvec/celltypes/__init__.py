"""Cell types: Cell Ontology terms, and the names that people write for them."""
