"""What draws the pictures of docs/ that no measurement makes: `python -m benchmarks.drawings`."""
