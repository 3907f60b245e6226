"""What makes the tables and pictures of docs/evidence.md."""
