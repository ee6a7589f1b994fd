"""One rounding method a file; `octavo.rounding.METHODS` has a row for each."""
