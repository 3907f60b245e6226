"""The papers' tables, cell by cell: what is published beside what this project counts, evaluates and trains."""
