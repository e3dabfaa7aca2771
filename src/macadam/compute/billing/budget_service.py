"""Budgets: what a project may spend, its forecast, its alerts and its hard stop."""
