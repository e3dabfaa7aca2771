"""Bills and prices: import, list, and what is charged to whom."""
