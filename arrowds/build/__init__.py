"""From a source to an index: plan the parts, map them, reduce them, commit."""
