"""What makes the tables and pictures of docs/reports/evidence.md."""
