"""One verb a file: what a command or a public function does, read top to bottom."""
