"""Jobs that join the library's parts, and the command line. No mathematics lives here."""
