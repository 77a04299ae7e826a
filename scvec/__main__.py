"""``python -m scvec`` is the same as ``scvec``."""

from scvec.cli.main import main

if __name__ == "__main__":
    main()
