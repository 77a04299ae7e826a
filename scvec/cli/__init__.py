"""The command line: a command parses its options, calls one library function, and prints the result."""
