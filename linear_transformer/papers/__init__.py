"""Published tables, with this project's measurement beside each published number."""
