"""Backbones: what turns texts into vectors."""
