"""One script a question: how fast, how small, and what ES does at equal operations."""
