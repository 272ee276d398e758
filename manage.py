#!/usr/bin/env python
"""Django's command line in a checkout: the same as the console script `realtime`."""

from realtime.cli import main

if __name__ == "__main__":
    main()
