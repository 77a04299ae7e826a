"""Encoders: what turns cells into vectors. One idea a file."""
