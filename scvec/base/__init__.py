"""Base of all other packages: types, errors, settings, arrays, parallel work."""
