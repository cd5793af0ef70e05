"""What each version of a prompt took and was worth, run by run, in an SQLite file."""
