"""The encoder prompt: a frozen language model reads the genes of a cell."""
