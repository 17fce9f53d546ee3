"""Published tables, and beside each number what this project has measured."""
