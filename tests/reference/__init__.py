"""Plain forms of what the kit computes cleverly: the tests prove both equal."""
