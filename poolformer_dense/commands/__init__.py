"""What a user types: each module parses its arguments, calls the library and prints."""
