"""Annotation: several opinions on each cell, weighed, calibrated and judged."""
