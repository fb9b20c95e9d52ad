"""The readers of arrowds that `tests/fuzz_readers.py` gives damaged input, by what they read."""
