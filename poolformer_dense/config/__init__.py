"""From a config file and a command line to a checked config."""
