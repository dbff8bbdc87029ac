"""What the domain alignment term does: its data, and what is made of its records."""

import numpy as np
import pytest

from experiments import domain_alignment


@pytest.mark.parametrize("case", domain_alignment._CASES)
def test_sets_share_no_image_and_have_their_classes(case):
  _, source_classes, target_classes, shots = domain_alignment._CASES[case]
  source, target, test = domain_alignment.make_sets(3, source_classes, target_classes, shots)
  assert np.bincount(target["label"]).tolist() == [shots] * len(target_classes)
  assert set(source["label"]) == set(range(len(source_classes)))
  assert len(test["label"]) == 36 * len(target_classes)
  train_images = 1437 if case == "same" else 721
  assert len(source["label"]) == train_images - (20 if case == "same" else 0)


def test_render(tmp_path):
  records = [
    {
      "conditions": {"case": "same"},
      "metrics": {"test_accuracy": [0.7 + 0.01 * n, 0.8, 0.7, 0.7, 0.6], "distance": [0.5] * 5},
    }
    for n in range(2)
  ]
  domain_alignment.render("small", records, tmp_path)
  text = (tmp_path / "domain_alignment_small.md").read_text(encoding="utf-8")
  assert "| 0 | 70.5 ± 0.7 (2) | not run |" in text
  assert "| 0.1 | +9.5 [3.1, 15.9] (2) | not run |" in text
  assert "| 3 | 50.0 ± 0.0 (2) | not run |" in text
