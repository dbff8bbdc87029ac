"""Builds the API reference: `python docs/api.py FOLDER`. A module or name that cannot be read is an error."""

import pathlib
import pkgutil
import sys
import warnings

import pdoc

import soseleto_jax


def build(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes one page for each module of the package; returns the pages."""
  for name in soseleto_jax.__all__:  # some are loaded when they are asked for, which pdoc does not do
    setattr(soseleto_jax, name, getattr(soseleto_jax, name))
  found = pkgutil.walk_packages(soseleto_jax.__path__, f"{soseleto_jax.__name__}.")
  modules = [soseleto_jax.__name__, *(module.name for module in found if module.name != "soseleto_jax.main")]
  pdoc.render.configure(docformat="google", math=True)
  with warnings.catch_warnings():
    warnings.filterwarnings("error", category=UserWarning, module="pdoc")
    warnings.filterwarnings("ignore", message="Error parsing type annotation")  # of the libraries' own types
    warnings.filterwarnings("ignore", message="The module specification")  # a package's modules are found with it
    pdoc.pdoc(*modules, output_directory=folder)
  return sorted(folder.rglob("*.html"))


if __name__ == "__main__":
  if len(sys.argv) != 2:
    raise SystemExit("usage: python docs/api.py FOLDER")
  pages = build(pathlib.Path(sys.argv[1]))
  print(f"{len(pages)} pages: {pathlib.Path(sys.argv[1]) / 'index.html'}")
