"""The files of a study's report, and the commands."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from recast import cli
from recast.bench import rows
from recast.study import design, panel
from recast.study.panel import Panel

from .studies import bench_folder, clipless, plain_folders


class Cells(HTMLParser):
    """The cells of all tables of a page, as rows of texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.open = True

    def handle_endtag(self, tag: str) -> None:
        self.open = self.open and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.open:
            self.rows[-1][-1] += data


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def report(folder: Path, *flags: str) -> Path:
    assert cli.main(["study", "report", str(folder), *flags]) == 0
    return folder / "report"


def test_the_first_table_is_that_of_the_paper(tmp_path: Path, capsys: Any) -> None:
    """Method, and judgments in favour of ours in per cent; and every number is in summary.csv."""
    clipless(tmp_path, "2afc", ["ours", "<b>", "c"], 10)
    panel.simulate(tmp_path, Panel(strengths={"ours": [1], "<b>": [0], "c": [-1]}, careless=1), 8)
    out = report(tmp_path)
    assert capsys.readouterr().out == f"{out / 'report.html'}\n"
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "These answers come from a simulated panel, not from people." in text
    cells = Cells(text).rows
    summary = [row for row in table(out / "summary.csv") if row["quantity"] == "fraction in favour"]
    exact = [row for row in summary if row["interval"] == "exact"]
    assert cells[0][:2] == ["compared with", "in favour, %"]
    for line, row in zip(cells[1:3], exact, strict=True):
        assert line[0] == row["other"]
        assert line[1] == f"{100 * float(row['value']):.2f}"
        assert line[2] == f"[{100 * float(row['low']):.2f}, {100 * float(row['high']):.2f}]"
        assert line[4] == row["judgments"]
    judgments = table(out / "judgments.csv")
    for row in exact:
        own = [
            one
            for one in judgments
            if one["counted"] == "yes" and one["check"] == "no" and one["option"] == row["other"]
        ]
        lost = sum(one["value"] == "0" for one in own)
        assert float(row["value"]) == pytest.approx(lost / len(own))
    assert len(judgments) == 8 * 23 * 2  # raters x (20 items and 3 checks) x options


def test_raters_are_listed_with_the_reason(tmp_path: Path) -> None:
    clipless(tmp_path, "2afc", ["ours", "b"], 10)
    panel.simulate(tmp_path, Panel(strengths={"ours": [1], "b": [0]}, careless=4), 6)
    raters = table(report(tmp_path) / "raters.csv")
    assert all(re.fullmatch("rater-[0-9a-f]{8}", row["rater"]) for row in raters)
    failed = [row["status"] for row in raters].count("failed")
    assert failed == sum(row["mistakes"] != "0" for row in raters) > 0
    cells = Cells((tmp_path / "report" / "report.html").read_text(encoding="utf-8")).rows
    assert [
        "left out: failed the attention checks",
        str(failed),
        str(failed),
        str(13 * failed),
    ] in cells
    text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "0 mistakes allowed; who guesses passes in 12.5% of all cases" in text
    report(tmp_path, "--mistakes", "3")
    assert {row["status"] for row in table(tmp_path / "report" / "raters.csv")} == {"counted"}


@pytest.mark.parametrize("form", ["three-questions", "mos"])
def test_the_table_of_ratings(tmp_path: Path, form: Any) -> None:
    made = clipless(tmp_path, form, ["x", "y"], 5, {"x": [1, 2, 3, 4, 5], "y": [0, 0, 0, 0, 0]})
    opinions = {"x": [4.0] * len(made.questions), "y": [2.0] * len(made.questions)}
    panel.simulate(tmp_path, Panel(strengths=opinions), 5)
    out = report(tmp_path)
    cells = Cells((out / "report.html").read_text(encoding="utf-8")).rows
    assert cells[0] == ["system", *(question.name for question in made.questions), "judgments"]
    ratings = [row for row in table(out / "summary.csv") if row["quantity"] == "mean rating"]
    assert len(ratings) == 2 * len(made.questions)
    assert cells[1][1].startswith(f"{float(ratings[0]['value']):.2f} [")
    taus = [row for row in table(out / "summary.csv") if row["quantity"] == "tau within cases"]
    # The metric is higher for x in each case, and so is what people say.
    assert [float(row["value"]) for row in taus] == [1.0] * len(made.questions)


@pytest.mark.slow  # it imports torch
def test_from_a_benchmark_to_a_report(tmp_path: Path) -> None:
    """By the commands; the directions of the metrics are those of the registry."""
    source = bench_folder(tmp_path / "bench", {"dmt": [0.9, 0.5], "sdedit": [0.1, 0.8]})
    folder = tmp_path / "study"
    words = ["study", "new", str(source), "--ours", "dmt", "--out", str(folder)]
    assert cli.main(words) == 0
    assert design.read(folder).metrics == {"motion_fidelity_plain": "higher"}
    panel.simulate(folder, Panel(strengths={"dmt": [3], "sdedit": [-3]}), 20)
    summary = table(report(folder) / "summary.csv")
    (tau,) = [row for row in summary if row["quantity"] == "tau within cases"]
    assert tau["metric"] == "motion_fidelity_plain"
    assert float(tau["value"]) == 0  # people prefer dmt on both clips, the metric on one
    assert (folder / "report" / "report.html").stat().st_size > 5000
    assert rows.METRIC + tau["metric"] in (source / rows.SPREADSHEET).read_text()


def test_the_commands_name_mistakes(tmp_path: Path, capsys: Any) -> None:
    folder = plain_folders(tmp_path / "clips", ["ours", "other"], 1)
    assert cli.main(["study", "new", str(folder), "--out", str(tmp_path / "s")]) == 0
    assert cli.main(["study", "report", str(tmp_path / "s")]) == 2
    assert "has no answer that counts yet: 0 raters have begun" in capsys.readouterr().err
    assert cli.main(["study", "new", str(folder), "--form", "3afc"]) == 2
    assert "--form takes one of" in capsys.readouterr().err
    assert cli.main(["study", "serve", str(folder)]) == 2
    assert "is not the folder of a study" in capsys.readouterr().err
    assert cli.main(["study", "report", str(folder), "--mistakes", "-1"]) == 2
    assert "--mistakes must be at least 0, got -1" in capsys.readouterr().err
    assert json.loads((tmp_path / "s" / "design.json").read_text())["ours"] is None
