"""Published tables, with the number that this project measured beside each published one."""
