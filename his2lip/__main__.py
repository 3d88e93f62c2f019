"""`python -m his2lip` is the `his2lip` command."""

from his2lip.cli import main

main()
