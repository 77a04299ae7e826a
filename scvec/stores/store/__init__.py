"""The folder of immutable generations."""
