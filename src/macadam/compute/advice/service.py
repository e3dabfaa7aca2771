"""Advice as operations: what would cost less, what it saves and risks, and what it saved once taken."""
