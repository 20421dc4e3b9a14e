"""What the command line refuses, it refuses in words that one can act on."""

import pytest

from optax_muon import MatrixAxes
from optax_muon._cli import main
from tests import cli_models

HERE = "tests.cli_models"


@pytest.fixture
def refused(capsys):
    """A refused command's error, of which nothing went to stdout."""

    def run(*argv):
        assert main(argv) == 2
        out, error = capsys.readouterr()
        assert out == ""
        start = "python -m optax_muon: error: "
        assert error.startswith(start)
        assert "Traceback" not in error
        return error.removeprefix(start).removesuffix("\n")

    return run


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("undecided", ["weight  (3, 4)", "rank_3  (3, 4, 5)", "matrix_axes"]),
        ("linen_without_inputs", ["Dense", "(module, *inputs)"]),
        ("nothing", ["None", "without any parameters", "arrays or shapes"]),
        ("no_arrays", ["learning_rate (float), name (str)", "return parameters"]),
        ("needs_a_size", ["(size, *, depth=1)", "name one that needs none"]),
        ("a_number", ["type int", "name a function"]),
        ("missing", ["no 'missing'", "undecided"]),
    ],
)
def test_plan_refuses_in_words(refused, source, parts):
    error = refused("plan", f"--from={HERE}:{source}")
    assert all(part in error for part in parts), error
    assert len(error.splitlines()) == (4 if source == "undecided" else 1)


@pytest.mark.parametrize("name", ["nnx", "linen"])
def test_what_a_model_does_not_tell_is_told_by_axes(refused, name):
    error = refused("plan", f"--from={HERE}:unexplained_{name}")
    assert "  experts  (3, 4, 8) float32" in error
    assert "--axes MODULE:NAME" in error
    assert f"axes_from_{name}(" in error.splitlines()[-1]


@pytest.mark.parametrize(
    ("argument", "part"),
    [
        ("--from=tests.no_such_module:f", "no module 'tests.no_such_module'"),
        ("--from=no_such_package.module:f", "no module 'no_such_package'"),
        ("--from=tests.cli_models", "write MODULE:NAME"),
        ("--tokens=-3", "tokens=-3.0"),
        ("--html=no/such/folder.html", "no folder 'no/such'"),
        ("--html=tests", "is a folder"),
        ("--platform=abacus", "invalid choice: 'abacus'"),
        ("--axes=tests.cli_models:a_number", "matrix_axes"),
    ],
)
def test_plan_refuses_arguments(refused, argument, part):
    error = refused("plan", f"--from={HERE}:parameters", argument)
    assert part in error
    assert len(error.splitlines()) == 1


def test_bugs_of_users_keep_their_tracebacks(tmp_path, monkeypatch):
    with pytest.raises(ZeroDivisionError):
        main(["plan", f"--from={HERE}:breaks"])
    rule = f"--axes={HERE}:axes_with_a_bug"
    with pytest.raises(AttributeError, match="no_such_attribute"):
        main(["plan", f"--from={HERE}:parameters", rule])
    (tmp_path / "imports_what_is_not_there.py").write_text("import no_such_thing_42")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_thing_42"):
        main(["plan", "--from=imports_what_is_not_there:f"])


def test_axes_that_raise_a_type_error_are_the_users(monkeypatch):
    """The library's own errors of that type are messages; a rule's are not."""

    def rule(path, leaf):
        return MatrixAxes(None + 1)

    monkeypatch.setattr(cli_models, "a_number", rule)
    with pytest.raises(TypeError, match="NoneType"):
        main(["plan", f"--from={HERE}:parameters", f"--axes={HERE}:a_number"])


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--table=aol"], "not offered"),
        (["--table=frob"], "valid names: polar_express"),
        (["--steps=3"], "name it with --table"),
        (["--table=cubic", "--steps=0"], "no positive whole number"),
        (["--plot=map.docx"], "must be .svg, .png or .pdf"),
        (["--plot=no/such/map.svg"], "no folder 'no/such'"),
    ],
)
def test_coefficients_refuses(refused, argv, part):
    assert part in refused("coefficients", *argv)


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "required: command"),
        (["frob"], "invalid choice: 'frob'"),
        (["info", "--shape=3"], "write FAN_INxFAN_OUT"),
        (["info", "--shape=0x4"], "write FAN_INxFAN_OUT"),
        (["plan"], "required: --from"),
    ],
)
def test_usage_errors_are_one_line(refused, argv, part):
    error = refused(*argv)
    assert part in error
    assert "--help" in error
    assert len(error.splitlines()) == 1


BENCH = [
    ([], "either --shape or --from"),
    (["--shape=3x4", f"--from={HERE}:parameters"], "either --shape or --from"),
    (["--shape=3x4", "--count=2", "--count=3"], "2 --count for 1 --shape"),
    (["--shape=3x4", f"--axes={HERE}:STACKED_AXES"], "--axes belongs to --from"),
    ([f"--from={HERE}:parameters", "--count=2"], "--count belongs to --shape"),
    ([f"--from={HERE}:vectors"], "none of the model's leaves is Muon's"),
    ([f"--from={HERE}:undecided"], "rank_3  (3, 4, 5)"),
    (["--shape=3x4", "--rounds=0"], "no positive whole number"),
    (["--shape=3x4", "--out=no/such/file.json"], "no folder 'no/such'"),
]


@pytest.mark.parametrize(("argv", "part"), BENCH)
def test_bench_refuses(refused, argv, part):
    assert part in refused("bench", *argv)
