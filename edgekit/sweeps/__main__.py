"""What a sweep starts for each of its cells; see ``edgekit.sweeps.cell``."""

from edgekit.sweeps.cell import main

if __name__ == "__main__":
    main()
