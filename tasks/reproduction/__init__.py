"""The paper's tables: rows from configs/tables, published cells, what this project counts, evaluates and trains."""
