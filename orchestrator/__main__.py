"""`python -m orchestrator ...`: the command line without an installed `loray` command."""

from orchestrator.cli.app import main

if __name__ == "__main__":
    main()
