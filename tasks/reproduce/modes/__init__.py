"""What is done for a table's cells: counted, evaluated, trained, compared by small proxies."""
