"""Checks a Macadam proof bundle without Macadam: `python -m macadam_verify bundle.json --key FILE`."""
