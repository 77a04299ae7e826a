"""The store on the disk, its knowledge base of genes, and its nearest-neighbour indices."""
