"""A page and a REST interface over a store, on this machine."""
