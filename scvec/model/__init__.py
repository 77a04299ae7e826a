"""Annotation: an ensemble of classifiers, calibrated, and a novelty score for each cell."""
