"""``python -m ccts_dist COMMAND``: the program ``ccts``."""

from ccts_dist.cli import main

if __name__ == "__main__":
    main()
