"""Long runs that a person starts; the tests use them for seconds."""
