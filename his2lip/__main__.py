"""`python -m his2lip` is the `his2lip` command."""

from his2lip.cli.app import main

if __name__ == "__main__":  # processes that multiprocessing spawns import this module again
    main()
