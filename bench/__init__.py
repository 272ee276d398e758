"""`make bench`: measures this project and its peers side by side, on one machine, in one run, with one load
generator."""
