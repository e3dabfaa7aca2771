"""The graph of what was made from what, derived from the ledger."""
