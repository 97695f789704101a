"""The command line: click, and what it says to people and to machines."""
