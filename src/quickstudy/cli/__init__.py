"""The command line has one thin module a command."""
