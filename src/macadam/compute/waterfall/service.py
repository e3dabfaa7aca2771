"""Where the money went: the waterfall and the reports over it."""
