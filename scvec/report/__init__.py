"""The report of a query as a page, and plots."""
