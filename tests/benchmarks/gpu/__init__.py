"""What `make gpu` runs on a machine with a GPU: its tests and a benchmark, within a time, into one page."""
