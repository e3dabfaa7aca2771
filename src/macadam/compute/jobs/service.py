"""Jobs as operations: submit, list, explain, logs, cancel."""
