"""The five ideas of sparse attention: schedule, order, mask source, execution, correction."""
