"""A plan as text, as HTML and as plain data: all of it there, and legible."""

import html.parser
import json
import re

import jax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_muon import MatrixAxes, NewtonSchulz, Svd, plan
from optax_muon._tables import Table, amount
from tests.routing_cases import CASES, OTHER_AXES, shaped

ALL = CASES | OTHER_AXES
VOID = {"br"}


class Parser(html.parser.HTMLParser):
    """Tables, the text around them, and whether every tag is closed where it should."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.tables, self.around = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "table" not in self.open:
            self.around += data
        elif self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def cells(table):
    """Those of a text table, line by line."""
    header, rule, *body = table
    columns = [match.span() for match in re.finditer("-+", rule)]
    return [[line[a:b].strip() for a, b in columns] for line in [header, *body]]


def tables_in_text(found):
    leaves, *rest = str(found).split("\n\n")
    lines = leaves.splitlines()[: 2 + len(found.leaves)]
    return [cells(lines), *(cells(table.splitlines()[:-1]) for table in rest)]


@pytest.mark.parametrize("case", ALL.values(), ids=ALL)
def test_html_has_every_cell_of_the_text(case):
    found = plan(case.build(), case.matrix_axes, tokens=512)
    page = Parser(found._repr_html_())
    assert page.tables == tables_in_text(found)
    paths = [row[0] for row in page.tables[0][1:]]
    assert paths == [leaf.path for leaf in found.leaves]
    summary = [line.strip() for line in page.around.splitlines() if line.strip()]
    assert summary == [
        line.strip()
        for line in str(found).splitlines()
        if re.match(r"\d+ lea\S+, |  muon|  adamw|a step", line)
    ]


def test_html_escapes_names_and_sets_no_colours():
    name = "<script>alert('x')</script> & \"more\""
    params = {name: {"kernel": shaped(4, 8)}, "</table>": shaped(3)}
    text = plan(params, orthogonalizer=lambda x: x)._repr_html_()
    assert "<script" not in text
    page = Parser(text)
    assert [row[0] for row in page.tables[0][1:]] == ["</table>", f"{name}/kernel"]
    assert page.tables[1][1][1] == "<lambda>"
    assert {key for key, _ in page.attributes} == {"style"}
    styles = {value for _, value in page.attributes}
    assert styles == {"text-align: left", "text-align: right"}


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_on_a_mesh_it_shows_who_does_what(platform):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    found = plan(
        {"layers": shaped(3, 128, 1024), "bias": shaped(16)},
        {"layers": MatrixAxes(1, 2), "bias": None},
        {
            "layers": NamedSharding(mesh, P(None, "fsdp", "tensor")),
            "bias": NamedSharding(mesh, P()),
        },
        orthogonalizer=NewtonSchulz("keller_jordan"),
        platform=platform,
        tokens=1000,
    )
    [bucket] = found.buckets
    sent, flops = amount(bucket.bytes_sent, "B"), amount(bucket.flops, "FLOP")
    _, [header, row] = tables_in_text(found)
    assert header == ["stack", "form", "a device has", "sends", "computes"]
    assert row[0] == "3 x 128 x 1024 float32"
    assert row[1] == str(bucket.forms[0])
    assert row[3:] == [sent, flops]
    assert str(bucket) == f"{row[0]}: {row[2]} a device, which sends {sent}"
    training = amount(6 * 3 * 128 * 1024 * 1000 / 8, "FLOP")
    last = str(found).splitlines()[-1]
    assert re.fullmatch(
        f"a step, on each of 8 devices: {flops} of products, "
        rf"[\d.]+% of about {training} in forward and backward; {sent} sent",
        last,
    )
    state = amount(3 * 128 * 1024 * 4, "B"), amount(3 * 128 * 1024 * 4 / 8, "B")
    assert f", {state[0]} of state, {state[1]} a device\n" in str(found)


def test_products_that_are_not_counted():
    *_, row, step = str(plan(shaped(8, 8), orthogonalizer=Svd())).splitlines()
    assert row.split() == [
        "1",
        "x",
        "8",
        "x",
        "8",
        "float32",
        "svd",
        "in",
        "float32",
        "-",
    ]
    assert step == "a step: products that are not counted"
    told = plan(shaped(8, 8), orthogonalizer=Svd(), tokens=64)
    training = amount(told.training_flops, "FLOP")
    assert f"{step}, beside about {training} in forward and backward" in str(told)


class TestData:
    @pytest.mark.parametrize("name", ["linen gpt, scan", "nnx gpt", "nnx cnn"])
    def test_json_has_all_fields(self, name):
        found = plan(ALL[name].build(), ALL[name].matrix_axes, tokens=512)
        data = found.as_dict()
        back = json.loads(json.dumps(data))
        assert [leaf["path"] for leaf in back["leaves"]] == [
            leaf.path for leaf in found.leaves
        ]
        for records, originals in (
            (data["leaves"], found.leaves),
            (data["buckets"], found.buckets),
        ):
            for record, original in zip(records, originals, strict=True):
                assert set(record) == set(vars(original))
                assert record["dtype"] == "float32"
        assert set(vars(found)) < set(back)
        for sum_ in ("flops", "overhead", "bytes_sent", "state_bytes"):
            assert back[sum_] == getattr(found, sum_)
        assert back["total_state_bytes"] == found.total_state_bytes

    def test_forms_and_division_are_words(self):
        mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
        found = plan(
            {f"layer_{i}": shaped(64, 1024) for i in range(2)},
            sharding=NamedSharding(mesh, P("x")),
            orthogonalizer=NewtonSchulz("keller_jordan"),
            platform="cpu",
        )
        [bucket] = json.loads(json.dumps(found.as_dict()))["buckets"]
        assert bucket["forms"] == [{"name": "gram", "restarts": [], "dtype": "float32"}]
        assert bucket["division"] == {"stack": "2 of x", "long": "4 of x"}


def test_amounts_have_three_digits_and_a_prefix():
    written = {
        0: "0 B",
        999: "999 B",
        999.6: "1 kB",
        1000: "1 kB",
        12_345: "12.3 kB",
        999_499: "999 kB",
        999_600: "1 MB",
        4.5e9: "4.5 GB",
        7e12: "7 TB",
        8e15: "8 PB",
        2e18: "2e+03 PB",
    }
    assert {count: amount(count, "B") for count in written} == written


def test_a_table_lines_up():
    table = Table(("name", "count"), [("a", "1"), ("longer", "23")])
    assert table.text().splitlines() == [
        "name    count",
        "------  -----",
        "a           1",
        "longer     23",
    ]
