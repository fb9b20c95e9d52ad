"""Index training data by metrics and feed it to training in the order that the metrics call for."""
