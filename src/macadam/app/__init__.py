"""The composition root: adapters chosen by settings, and the dispatcher that every call goes through."""
