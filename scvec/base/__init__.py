"""What every other room stands on: types, errors, settings, arrays, parallel work."""
