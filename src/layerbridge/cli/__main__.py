"""`python -m layerbridge.cli`."""

from layerbridge.cli import main

if __name__ == "__main__":
    main()
