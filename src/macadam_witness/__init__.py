"""A witness of append-only logs: it cosigns what it has seen to grow, and nothing else. Independent of Macadam."""
