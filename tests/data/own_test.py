"""What is known of the user's folders before they are read, and sets of one kind beside another."""

import numpy as np
import pytest

from soseleto_jax.data import own
from soseleto_jax.data.get_task import data_config
from tests.data.written import CLASSES, write_arrays, write_images


def test_listing_of_images(tmp_path):
  write_images(tmp_path / "clean" / "train", 4, 0, (24, 30, 3))
  write_images(tmp_path / "clean" / "test", 1, 1, (24, 30, 3))
  clean = tmp_path / "clean"
  assert own.kind_of(clean) == "folder" and own.is_folder(clean) and not own.is_folder((1, 2))
  assert own.listing(clean) == own.Listing("folder", (4, 4, 4), (0, 0, 3), 24)
  assert own.target_counts(clean) == (4, 4, 4)
  assert own.has_split(clean, "test") and not own.has_split(clean, "validation")
  assert not own.has_split(clean / "test", "cat")  # it holds classes, and no sets


def test_listing_of_arrays(tmp_path):
  write_arrays(tmp_path, x=np.zeros((5, 2, 3)), label=np.array(list("abbab")))
  assert own.listing(tmp_path) == own.Listing("arrays", (2, 3), (2, 3))
  assert own.target_counts((np.zeros((3, 2)), [7, 7, 9])) == (2, 1)


def test_a_folder_beside_examples_in_memory(tmp_path):
  """They meet by name; of the folder what is also in the target is left out."""
  x = write_images(tmp_path / "web", 3, 0, (6, 6, 3))
  clean = (x[[0, 4, 8]], np.array(CLASSES))
  found = own.make_task(tmp_path / "web", clean, None, None, data_config(), 0)
  assert found.source_class_names == CLASSES and found.target_labels == CLASSES
  assert found.source["row"].tolist() == [1, 2, 3, 5, 6, 7] and found.test is None
  assert sum(found.left_out.values()) == 3
  turned = own.make_task(clean, tmp_path / "web", None, None, data_config(), 0)
  assert turned.num_source == 3 and turned.target["label"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_what_is_no_set():
  with pytest.raises(ValueError, match="target is int; give a folder, or a pair"):
    own.make_task((np.zeros((2, 2)), [0, 1]), 3, None, None, data_config(), 0)
