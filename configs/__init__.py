"""One experiment a file: `get_config(argument)` returns it, and the docstring says what was run and what it gave."""
