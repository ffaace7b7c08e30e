"""The report's folder: one page that needs nothing else, files that agree with it, the same bytes every time."""

import csv
import re
import xml.etree.ElementTree as ET
from collections import Counter
from itertools import pairwise

import pytest

from layerbridge.analysis import read_analysis
from layerbridge.coloured_text import cut
from layerbridge.errors import ConfigError
from layerbridge.reporting.figures import FONTS
from layerbridge.reporting.page import render_report, view_report
from layerbridge.reporting.report import write_report
from tests.reporting.html import read_page
from tests.reporting.sample import BRIDGES, CODES, MAIN, REFERENCE, TEXTS, make_analysis, make_task

LANGUAGES = "table-sib200-score-languages"


def drawn(analysis):
    return read_page(render_report(view_report(analysis)))


def small_analysis(**changes):
    task = make_task(codes=("en", "si", "ta"), sweep=False)
    known = make_analysis()
    claims = tuple(c for c in known.claims if (c.task, c.method) == ("sib200", "score"))
    changes = {"tasks": (task,), "claims": claims, "weights": (), "curves": (), "origins": ()} | changes
    return known.model_copy(update=changes)


def test_the_page_points_to_nothing_outside_itself(page):
    for element in page.elements:
        for name, value in element.attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "style"):
                assert not re.search(r"https?:|//|file:|url\((?!['\"]?#)", value), (element.tag, name, value)
            if name in ("href", "xlink:href"):
                assert value.startswith(("#", "data:,")), value
    styles = "".join(element.text for element in page.elements if element.tag in ("style", "script"))
    assert not re.search(r"@import|@font-face|url\(|https?:|fetch\(|XMLHttp|import\(", styles)
    assert {element.tag for element in page.elements} & {"img", "iframe", "object", "embed", "video", "base"} == set()
    assert all("src" not in element.attributes for element in page.elements)


def test_ids_are_unique_and_every_reference_leads_to_one(page):
    ids = Counter(element.attributes["id"] for element in page.elements if "id" in element.attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    assert all(re.fullmatch(r"[\w.:-]+", name) for name in ids)
    for element in page.elements:
        for name in ("href", "xlink:href"):
            target = element.attributes.get(name, "")
            assert not target.startswith("#") or target[1:] in ids, target
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert set(element.attributes.get(name, "").split()) <= set(ids)
        for target in re.findall(r"url\(#([^)]+)\)", " ".join(element.attributes.values())):
            assert target in ids


def test_the_page_is_well_formed_with_landmarks_and_headings_in_order(page):
    assert page.unclosed == []
    tags = Counter(element.tag for element in page.elements)
    assert tags["main"] == tags["h1"] == tags["header"] == tags["nav"] == tags["footer"] == 1
    levels = [int(element.tag[1]) for element in page.elements if re.fullmatch("h[1-6]", element.tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.elements[0].attributes["lang"] == "en"


def test_every_table_says_what_its_heads_are_heads_of(page):
    for table in (element for element in page.elements if element.tag == "table"):
        assert all("scope" in head.attributes for head in table.find("th"))
        widths = {sum(int(c.attributes.get("colspan", 1)) for c in row.find("th", "td")) for row in table.find("tr")}
        assert len(widths) == 1


def test_every_drawing_says_in_words_what_it_shows(page, report):
    drawings = [element for element in page.elements if element.tag == "svg"]
    assert len(drawings) == len(list(report.glob("figures/*.svg"))) == 18
    for drawing in drawings:
        assert drawing.attributes["role"] == "img"
        assert "width" not in drawing.attributes
        assert "viewbox" in drawing.attributes
        assert all(len(part.text) > 10 for part in drawing.find("title", "desc"))


def test_drawings_are_files_of_their_own_with_text_as_text(report):
    for path in report.glob("figures/*.svg"):
        text = path.read_text(encoding="utf-8")
        root = ET.fromstring(text)
        assert "var(--" not in text
        assert FONTS in text
        assert list(root.iter("{http://www.w3.org/2000/svg}text"))
        assert not list(root.iter("{http://www.w3.org/2000/svg}image"))
        assert "<dc:date>" not in text


def test_contents_come_in_the_order_of_a_reader(page):
    text = page.by_id("claims").text
    order = ["All claims", "SIB-200, label scoring", "What these rows can show", "Which layers", "Learning curves",
             "Where the numbers came from"]  # fmt: skip
    headings = [element.text for element in page.elements if element.tag == "h2"]
    places = [next(i for i, heading in enumerate(headings) if part in heading) for part in order]
    assert places == sorted(places)
    assert "Transformer Softmax" in text


def test_the_table_of_languages_has_the_numbers_of_the_analysis(page, analysis):
    task = analysis.tasks[0]
    expected = sorted(task.languages, key=lambda row: -row.differences[MAIN].mean)
    lines = page.rows(LANGUAGES)
    assert [line[0][2] for line in lines] == [row.name for row in (*expected, *task.averages)]
    for row, line in zip([*expected, *task.averages], lines, strict=True):
        _, seen, resource, n, majority, *cells = line
        assert (n[0], float(majority[2])) == (str(row.n), row.majority)
        if row in expected:
            assert seen[0] == ("seen" if row.seen else "")
            assert resource[2] == ("" if row.resource is None else str(row.resource))
            assert line[0][1] == f"{row.code} · {row.script}"
        for name, (text, small, value) in zip(BRIDGES, cells[:4], strict=True):
            found = row.accuracies[name]
            assert float(value) == found.mean
            assert text == f"{100 * found.mean:.1f}"
            assert small == f"{100 * found.low:.1f} to {100 * found.high:.1f}"
        for name, part in ((MAIN, cells[4:7]), (BRIDGES[1], cells[7:10]), (BRIDGES[2], cells[10:])):
            found = row.differences[name]
            points, bootstrap, mcnemar = part
            assert float(points[2]) == found.mean
            assert float(points[0].replace("−", "-")) == pytest.approx(100 * found.mean, abs=0.051)
            assert [float(x) for x in points[1].replace("−", "-").split(" to ")] == pytest.approx(
                [100 * found.low, 100 * found.high], abs=0.051
            )
            assert float(bootstrap[2]) == found.p_bootstrap
            assert mcnemar[2] == ("" if found.p_mcnemar is None else str(found.p_mcnemar))
            assert bool(bootstrap[1]) == (found.p_bootstrap_holm is not None)


def test_csv_has_the_unrounded_numbers(report, analysis):
    for task in analysis.tasks:
        rows = list(csv.DictReader((report / f"tables/{task.task}-{task.method}-languages.csv").open(encoding="utf-8")))
        by_name = {row["language"]: row for row in rows}
        for line in (*task.languages, *task.averages):
            row = by_name[line.name]
            for name in BRIDGES:
                for part in ("mean", "low", "high", "unreadable"):
                    heading = f"{name}: {'accuracy' if part == 'mean' else part}"
                    assert float(row[heading]) == getattr(line.accuracies[name], part)
            group = "Transformer Softmax − last layer"
            found = line.differences[MAIN]
            assert float(row[f"{group}: difference"]) == found.mean
            assert int(row[f"{group}: wins"]) == found.wins
            assert row[f"{group}: p McNemar, Holm"] == (
                "" if found.p_mcnemar_holm is None else str(found.p_mcnemar_holm)
            )


def test_markdown_and_csv_and_the_page_have_the_same_cells(page, report):
    tables = [e.attributes["id"] for e in page.elements if e.tag == "table"]
    assert len(tables) == len(list(report.glob("tables/*.csv"))) == len(list(report.glob("tables/*.md"))) == 15
    for table in tables:
        name = table.removeprefix("table-")
        lines = page.rows(table)
        written = (report / f"tables/{name}.md").read_text(encoding="utf-8").splitlines()
        body = [line for line in written if line.startswith("| ")][2:]
        for line, row in zip(lines, body, strict=True):
            shown = [f"{text} ({small})" if small else text for text, small, _ in line]
            assert row.replace("\\", "") == "| " + " | ".join(" ".join(cell.split()) for cell in shown) + " |"
        values = list(csv.reader((report / f"tables/{name}.csv").open(encoding="utf-8")))
        assert len(values) == len(lines) + 1
        for line, row in zip(lines, values[1:], strict=True):
            assert line[0][2] == row[0]
            assert {value for _, _, value in line} <= set(row)


def test_generate_counts_unreadable_answers_apart(page, analysis):
    last_layer, global_softmax = page.rows("table-sib200-generate-languages")[0][5:7]
    assert "Unreadable" not in page.by_id("task-sib200-score").text
    assert last_layer[1].endswith("; 0.0 unreadable")
    assert global_softmax[1].endswith("; 3.0 unreadable")
    assert "none of them counts as wrong" in page.by_id("task-sib200-generate").text


def test_the_layer_sweep_and_the_baselines_have_tables_of_their_own(page, analysis):
    main = {cell.text for cell in page.by_id(LANGUAGES).find("th")}
    assert not any("LLM alone" in text or text.startswith("layer 1") for text in main)
    layers = page.rows("table-sib200-score-layers")
    assert [float(c[2]) for c in layers[-1][3:]] == [
        analysis.tasks[0].averages[1].accuracies[f"layer-{n}"].mean for n in range(1, 9)
    ]
    baselines = page.by_id("table-sib200-score-baselines").text
    assert "linear probe, last layer" in baselines
    assert "linear probe on Transformer Softmax's fused states" in baselines
    assert "The LLM takes no part in a linear probe; a fused one reads the states of a trained bridge." in page.text


def test_headings_of_a_table_are_unique(analysis):
    task = analysis.tasks[0]
    twice = [s.model_copy(update={"name": f"{s.name} [{n}]"}) for s in task.set_ups for n in (1, 2)]
    named = {
        field: {f"{k} [{n}]": v for k, v in getattr(task.languages[0], field).items() for n in (1, 2)}
        for field in ("accuracies", "differences")
    }
    rows = (task.languages[0].model_copy(update=named),)
    reference = {"reference": f"{REFERENCE} [1]", "set_ups": tuple(twice), "languages": rows, "averages": ()}
    other = small_analysis(tasks=(task.model_copy(update=reference),))
    for table in (*view_report(analysis).tables, *view_report(other).tables):
        headings = [(column.group, column.heading) for column in table.columns]
        assert len(set(headings)) == len(headings), table.title


def test_unreadable_answers_in_label_scoring_are_told_where_there_are_any():
    task = make_task(codes=("en", "si"))
    for name, key in (("llm_alone", "baselines"), ("layer-2", "layers"), (MAIN, "languages")):
        row = task.languages[1]
        found = {**row.accuracies, name: row.accuracies[name].model_copy(update={"unreadable": 0.25})}
        rows = (task.languages[0], row.model_copy(update={"accuracies": found}))
        view = view_report(small_analysis(tasks=(task.model_copy(update={"languages": rows}),)))
        table = next(table for table in view.tables if table.key.endswith(key))
        assert any(cell.small.endswith("; 25.0 unreadable") for line in table.rows for cell in line.cells)
        assert (
            "Unreadable: answers whose log-probabilities were no numbers, in percent; they count as wrong."
            in table.caption
        )


def test_baselines_alone_have_their_table_and_no_claim():
    task = make_task(codes=("en", "si"), sweep=False)
    alone = tuple(s for s in task.set_ups if s.group == "baseline")
    rows = tuple(row.model_copy(update={"differences": {}}) for row in task.languages)
    averages = tuple(row.model_copy(update={"differences": {}}) for row in task.averages)
    update = {"set_ups": alone, "languages": rows, "averages": averages, "reference": None}
    page = drawn(small_analysis(tasks=(task.model_copy(update=update),), claims=()))
    assert len(page.rows("table-sib200-score-baselines")) == 4
    assert not [e for e in page.elements if e.attributes.get("id") == LANGUAGES]


def test_an_average_of_one_language_is_of_one_language():
    page = drawn(small_analysis(tasks=(make_task(codes=("en", "si"), sweep=False),)))
    assert page.rows(LANGUAGES)[-1][0][1] == "1 language"


def test_what_interval_and_p_are_about_is_told_under_the_first_claim(page):
    (header,) = [e for e in page.elements if e.tag == "header"]
    for part in (
        "rows and seeds are drawn again",
        "languages are these ones",
        "Encoder embedded encoder, LLM embedded LM",
    ):
        assert part in header.text
    text = page.elements[0].text
    assert "combined by Rüger's rule; it is about these runs, not about other seeds." in text
    assert "so it stands alone; the others are adjusted for being several (Holm)" in page.by_id("claims").text
    assert "Holm; over all where none is unseen" in text


def test_what_was_left_out_is_told_before_the_claims(page, analysis):
    (header,) = [e for e in page.elements if e.tag == "header"]
    assert header.text.index(analysis.notes[0]) < header.text.index("points over")
    assert page.text.count(analysis.notes[0]) == 1


def test_the_date_is_of_the_results_not_of_the_report(page):
    (footer,) = [e for e in page.elements if e.tag == "footer"]
    assert footer.text.strip().startswith("From results up to 2025-03-01 12:00 UTC.")


def test_the_power_table_says_what_the_rows_can_show(page, analysis):
    found = {row.name: row for row in analysis.tasks[0].languages}
    for line in page.rows("table-sib200-score-power")[: len(CODES)]:
        assert float(line[2][2]) == found[line[0][2]].differences[BRIDGES[1]].detectable


def test_set_ups_that_never_disagreed_have_a_dash_for_what_could_be_shown():
    task = make_task(codes=("en", "si"), sweep=False)

    def same(row):
        update = {"mean": 0.0, "low": 0.0, "high": 0.0, "p_bootstrap": 1.0, "wins": 0, "losses": 0, "detectable": None}
        return row.model_copy(
            update={"differences": {k: v.model_copy(update=update) for k, v in row.differences.items()}}
        )

    rows, averages = tuple(map(same, task.languages)), tuple(map(same, task.averages))
    page = drawn(small_analysis(tasks=(task.model_copy(update={"languages": rows, "averages": averages}),)))
    assert {line[2][0] for line in page.rows("table-sib200-score-power")} == {"–"}
    assert "zero-shot average: the two never disagreed, so these rows do not tell." in page.by_id("power").text


def test_the_coloured_sentences_are_the_sentences(page, analysis):
    paragraphs = [e for e in page.elements if e.attributes.get("class") == "coloured"]
    sentences = next(w.weights for w in analysis.weights if w.set_up == MAIN).sentences
    assert len(paragraphs) == len(TEXTS)
    for paragraph, sentence in zip(paragraphs, sentences, strict=True):
        special = "".join(span.text for span in paragraph.find("span") if span.attributes["class"] == "special")
        assert paragraph.text.removesuffix(special) == sentence.text
        assert paragraph.attributes["lang"] == sentence.language
        assert paragraph.attributes["dir"] == ("rtl" if sentence.language == "ar" else "ltr")
        tokens = [span for span in paragraph.find("span") if span.attributes["class"] == "token"]
        assert len(tokens) == sum(bool(piece.body) for piece in cut(sentence))
        assert all(re.fullmatch(r"background:#[0-9a-f]{6}", span.attributes["style"]) for span in tokens)
        assert all("mean layer" in span.attributes["title"] for span in tokens)


def test_the_origin_of_every_run_is_told(page, report, analysis):
    assert analysis.command in page.by_id("origins").text
    text = (report / "tables/runs.csv").read_text(encoding="utf-8")
    assert all(o.run in text and o.checkpoint_sha256 in text and o.train_sha256 in text for o in analysis.origins)


def test_the_same_analysis_gives_the_same_bytes(report, analysis, tmp_path):
    again = write_report(analysis, tmp_path / "again").parent
    files = sorted(path.relative_to(report) for path in report.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert [name for name in files if (report / name).read_bytes() != (again / name).read_bytes()] == []


def test_the_report_can_be_drawn_again_from_its_analysis(report, analysis):
    assert read_analysis(report / "analysis.json") == analysis


EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>]]>--><!-- $\\frac{1}{2}$ \x00 | *"


def test_what_users_wrote_is_inert(tmp_path):
    source = make_analysis()
    weights = tuple(
        item.model_copy(
            update={
                "set_up": EVIL,
                "weights": item.weights.model_copy(
                    update={
                        "run": EVIL,
                        "task": EVIL,
                        "sentences": tuple(
                            s.model_copy(update={"text": EVIL, "tokens": (EVIL,), "weights": s.weights[:1]})
                            for s in item.weights.sentences[:1]
                        ),
                    }
                ),
            }
        )
        for item in source.weights
    )
    task = make_task(codes=("en", "si"))
    set_ups = tuple(s.model_copy(update={"name": EVIL}) if s.name == MAIN else s for s in task.set_ups)
    renamed = [
        row.model_copy(
            update={
                "accuracies": {EVIL if k == MAIN else k: v for k, v in row.accuracies.items()},
                "differences": {EVIL if k == MAIN else k: v for k, v in row.differences.items()},
            }
        )
        for row in (*task.languages, *task.averages)
    ]
    rows = tuple(row.model_copy(update={"name": EVIL}) for row in renamed[:2])
    task = task.model_copy(
        update={"task": EVIL, "set_ups": set_ups, "languages": rows, "averages": tuple(renamed[2:]), "notes": (EVIL,)}
    )
    claims = tuple(c.model_copy(update={"task": EVIL, "set_up": EVIL}) for c in source.claims[:1])
    curves = tuple(c.model_copy(update={"task": EVIL, "set_up": EVIL, "run": EVIL}) for c in source.curves)
    origins = tuple(o.model_copy(update={"run": EVIL, "data_source": (EVIL,)}) for o in source.origins)
    evil = source.model_copy(
        update={
            "title": EVIL, "command": EVIL, "notes": (EVIL,), "tasks": (task,), "claims": claims, "curves": curves,
            "weights": weights, "origins": origins,
        }
    )  # fmt: skip
    folder = write_report(evil, tmp_path / "evil").parent
    text = (folder / "index.html").read_text(encoding="utf-8")
    page = read_page(text)
    assert [e.tag for e in page.elements if e.tag in ("script", "img")] == ["script"]
    assert not any(name.startswith("on") for e in page.elements for name in e.attributes)
    assert "<script>alert" not in text
    for path in folder.glob("figures/*.svg"):
        root = ET.fromstring(path.read_text(encoding="utf-8"))
        assert not [e for e in root.iter() if e.tag.rpartition("}")[2] in ("script", "img")]
    for path in folder.glob("tables/*.md"):
        assert "<script>" not in path.read_text(encoding="utf-8")


def test_two_names_that_look_alike_as_files_do_not_overwrite_each_other(tmp_path):
    task = make_task(codes=("en", "si"), sweep=False)
    tasks = tuple(task.model_copy(update={"task": name}) for name in ("my task", "my/task", "my-task"))
    folder = write_report(small_analysis(tasks=tasks), tmp_path / "report").parent
    assert len(list(folder.glob("tables/*-languages*.csv"))) == 3
    page = read_page((folder / "index.html").read_text(encoding="utf-8"))
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))


def test_one_set_up_without_anything_to_compare_makes_a_page_too():
    task = make_task(codes=("en", "si"), sweep=False)
    alone = task.set_ups[:1]
    rows = tuple(
        row.model_copy(update={"accuracies": {REFERENCE: row.accuracies[REFERENCE]}, "differences": {}})
        for row in task.languages
    )
    task = task.model_copy(update={"set_ups": alone, "languages": rows, "averages": ()})
    page = drawn(small_analysis(tasks=(task,), claims=()))
    assert "Nothing was compared" in page.text
    assert len(page.rows(LANGUAGES)) == 2


def test_files_of_an_earlier_report_are_removed_and_all_others_kept(tmp_path):
    with_layers = small_analysis(tasks=(make_task(codes=("en", "si")),))
    folder = write_report(with_layers, tmp_path / "report").parent
    before = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    mine = ["mine.txt", "figures/mine.svg", "tables/mine.csv", "tables/sib200-score-mine.md"]
    for name in mine:
        (folder / name).write_text("mine")
    write_report(small_analysis(), folder)
    after = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert before - after == {
        "figures/sib200-score-layers.svg", "figures/sib200-score-layer-map.svg", "tables/sib200-score-layers.csv",
        "tables/sib200-score-layers.md",
    }  # fmt: skip
    assert after - before == set(mine)


def test_a_folder_that_no_report_was_written_in_loses_nothing(tmp_path):
    folder = tmp_path / "report"
    for name in ("figures/mine.svg", "tables/mine.csv"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("mine")
    write_report(small_analysis(), folder)
    assert (folder / "figures/mine.svg").read_text() == (folder / "tables/mine.csv").read_text() == "mine"


def test_a_list_of_files_that_was_changed_removes_nothing_elsewhere(tmp_path):
    folder = write_report(small_analysis(), tmp_path / "report").parent
    (tmp_path / "mine.svg").write_text("mine")
    (folder / "files.txt").write_text("../mine.svg\nfigures/../../mine.svg\nindex.html\n")
    write_report(small_analysis(), folder)
    assert (tmp_path / "mine.svg").exists()


def test_a_file_in_the_folders_place_is_not_overwritten(tmp_path):
    (tmp_path / "report").write_text("mine")
    with pytest.raises(ConfigError, match="is a file. Name another folder"):
        write_report(small_analysis(), tmp_path / "report")


@pytest.mark.parametrize(("package", "wanted"), [("jinja2", "Pages need jinja2"), ("matplotlib", "Charts need")])
def test_a_missing_package_is_named_with_what_to_install(monkeypatch, tmp_path, package, wanted):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ConfigError, match=rf"{wanted}.*pip install 'layerbridge\[study\]'"):
        write_report(small_analysis(), tmp_path / "report")
