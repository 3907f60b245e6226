"""What is read: the tables' rows, the published cells, where their data is."""
