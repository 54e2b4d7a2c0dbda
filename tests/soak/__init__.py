"""What takes longer than a test: python -m soak.fuzz, run in the folder tests."""
