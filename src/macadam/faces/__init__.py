"""How people and programs reach the operations: command line, HTTP, typed client. Thin, and derived from the table."""
