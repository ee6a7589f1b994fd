"""From a captured graph to a plan: what runs in integers, in which regions, at which widths."""
