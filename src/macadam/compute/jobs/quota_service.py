"""Quotas and cohorts as operations: who may use how much, and who lends to whom."""
