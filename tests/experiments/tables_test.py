"""Tables made of records."""

from experiments import tables
from experiments.tables import Method
from soseleto_jax.config import default_config


def record(method, value, seed=0, **conditions):
  return {
    "method": method,
    "conditions": conditions,
    "metrics": {} if value is None else {"test_accuracy": value},
    "config": {"seed": seed},
  }


RECORDS = [
  record("ours", 0.5, 1, noise=0.3),
  record("ours", 0.7, 0, noise=0.3),
  record("ours", 0.1, 1, noise=0.4),
  record("ours", 0.2, 1, noise=0.3, draw=1),
  record("theirs", 0.6, noise=0.3),
  record("ours", None, 2, noise=0.3),
]
METHODS = {
  "ours": Method("Ours", (61.04, 7.0)),
  "theirs": Method("Theirs", (None, 62.38)),
  "others": Method("Others"),
}
CONDITIONS = [{"noise": 0.3}, {"noise": 0.4}]


def cells(table):
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_values_are_of_one_method_under_one_set_of_conditions():
  of = lambda *which: tables.by_seed(RECORDS, *which).to_dict()
  assert of("ours", {"noise": 0.3}, "test_accuracy") == {1: 0.5, 0: 0.7}
  assert of("ours", {"noise": 0.4}, "test_accuracy") == {1: 0.1}
  assert of("ours", {}, "test_accuracy") == {}
  assert of("theirs", {"noise": 0.3}, "auc") == {}


def test_values_may_be_curves():
  records = [{**record("ours", None, seed), "metrics": {"curve": [seed, 2]}} for seed in (0, 1)]
  assert tables.by_seed(records, "ours", {}, "curve").tolist() == [[0, 2], [1, 2]]


def test_means_are_exact():
  """A sum of floats would make 60.1 of these."""
  assert tables.mean_sd([61.629999999999995, 59.330000000000005, 59.19]) == "60.0 ± 1.4 (3)"


def test_the_run_of_a_row():
  config = default_config()
  run = Method("Ours", (), "matching_networks", {"finetune": True}, settings={"a": 1}).run(
    "key", {"noise": 0.3}, config
  )
  assert (run.method, run.conditions, run.config, run.settings) == ("key", {"noise": 0.3}, config, {"a": 1})
  assert (config.method, config.method_options.to_dict()) == ("matching_networks", {"finetune": True})
  assert Method("Ours").run("joint", {}, default_config()).config.method == "joint"


def test_ours_published_difference():
  header, _, *rows = cells(tables.beside(METHODS, RECORDS, CONDITIONS, ["30%", "40%"]))
  assert header == [
      "", "30%: ours", "30%: published", "30%: difference", "40%: ours", "40%: published", "40%: difference",
  ]  # fmt: skip
  assert rows == [
    ["Ours", "60.0 ± 14.1 (2)", "61.0", "-1.0", "10.0 (1)", "7.0", "+3.0"],  # sd of the sample: sqrt(2 * 10² / 1)
    ["Theirs", "60.0 (1)", "", "", "not run", "62.4", ""],
    ["Others"] + ["not run", "", ""] * 2,
  ]


def test_differences_are_taken_seed_by_seed():
  records = [record("theirs", accuracy, seed, noise=0.3) for seed, accuracy in ((0, 0.5), (1, 0.6), (3, 0.9))]
  records += [record for record in RECORDS if record["method"] == "ours"]
  header, _, *rows = cells(tables.paired(METHODS, "ours", records, CONDITIONS, ["30%", "40%"]))
  assert header == ["", "30%: difference", "30%: ahead", "40%: difference", "40%: ahead"]
  assert rows == [
    ["Theirs", "5.0 ± 21.2 (2)", "1 of 2", "not run", ""],  # 20 and -10 points, on seeds 0 and 1
    ["Others", "not run", "", "not run", ""],
  ]


def test_rows_of_a_metric():
  rows = tables.rows(METHODS, RECORDS, CONDITIONS[:1], "test_accuracy", scale=1, digits=2)
  assert rows == [["Ours", "0.60 ± 0.14 (2)"], ["Theirs", "0.60 (1)"], ["Others", "not run"]]


def test_sizes_of_the_source():
  sizes = lambda *sizes: [{"metrics": {"num_source": size}} for size in sizes]
  assert tables.source_sizes(sizes(37_172, 37_172)) == "37,172"
  assert tables.source_sizes(sizes(10_000, 800)) == "800 or 10,000"
  assert tables.source_sizes([]) == "No"


def test_a_file_of_tables(tmp_path):
  table = tables.markdown(["", "a", "b"], [["x", "1", "2"]])
  tables.write(tmp_path / "new" / "t.md", ("First", table), ("Second ± sd", table))
  lines = ["|  | a | b |", "|---|--:|--:|", "| x | 1 | 2 |"]
  expected = ["First:", "", *lines, "", "Second ± sd:", "", *lines, ""]
  assert (tmp_path / "new" / "t.md").read_text(encoding="utf-8").split("\n") == expected


def test_a_file_says_where_its_numbers_are_from_and_how_many_settings_were_tried(tmp_path):
  records = [
    {"date": "2026-01-03", "commit": "c3", "versions": {"method soseleto": 2, "experiments.runs": 1}},
    {"date": "2026-01-01", "commit": "a1"},
    {"date": "2026-01-02", "commit": "b2+"},
  ]
  methods = {"ours": Method("Ours", tries=9), "theirs": Method("Theirs"), "others": Method("Others", tries=1)}
  table = tables.markdown(["", "a"], [["x", "1"]])
  tables.write(tmp_path / "t.md", ("First", table), records=records, methods=methods)
  assert (tmp_path / "t.md").read_text(encoding="utf-8").split("\n\n")[2:] == [
    "From 3 records of 2026-01-01 to 2026-01-03, commits a1 to c3 (3). Versions other than 1: method soseleto 2.",
    "Settings tried before these, none on what is reported: Ours: 9; Others: 1; others: not counted.\n",
  ]
