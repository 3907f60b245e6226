"""What is written: markdown, csv, pictures and one page."""
