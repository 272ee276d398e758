"""`python -m realtime`: the same as the console script `realtime`."""

from realtime.cli import main

if __name__ == "__main__":
    main()
