"""What a command does, as functions. The CLI parses, calls one of these, and prints."""
