"""What an import path names, and what is said of one that names nothing."""

import pytest

from soseleto_jax.core import import_path


def test_finds_what_it_names():
  assert import_path.find("field", "soseleto_jax.core.import_path:find") is import_path.find


@pytest.mark.parametrize(
  ("path", "message"),
  [
    ("no_such_package.nets:Wide", "config.x='no_such_package.nets:Wide': there is no module 'no_such_package'"),
    ("", "give module:name"),
    ("soseleto_jax.core.import_path:fnd", "has no 'fnd'; did you mean 'find'"),
    ("soseleto_jax.core.import_path", "has no ''"),
  ],
)
def test_names_nothing(path, message):
  with pytest.raises(ValueError, match=message):
    import_path.find("config.x", path)
