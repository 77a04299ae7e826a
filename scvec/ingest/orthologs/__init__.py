"""Tables of orthologs, as databases and people publish them. The door is ``ortholog_tables``."""
