"""`make bench`: this project and its peers side by side, on one machine, in one run, under one load generator."""
