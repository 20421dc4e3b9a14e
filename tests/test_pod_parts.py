"""The parts of the pod program: mesh, sharding rule, batches, and checksums."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.pod_small import CONTEXT, MODEL, SIZE, mesh_of

pytestmark = pytest.mark.usefixtures("pod_modules")


@pytest.mark.parametrize(
    ("flag", "sizes"),
    [
        (None, (1, 8, 1)),
        ("fsdp=8", (1, 8, 1)),
        ("data=2,fsdp=4", (2, 4, 1)),
        ("tensor=2, data=4", (4, 1, 2)),
        ("tensor=2,fsdp=2,data=2", (2, 2, 2)),
    ],
)
def test_the_mesh_of_a_flag(flag, sizes):
    from pod.layout import make_mesh, parse_mesh

    parsed = parse_mesh(flag, 8)
    assert tuple(parsed.items()) == tuple(
        zip(("data", "fsdp", "tensor"), sizes, strict=True)
    )
    assert make_mesh(parsed).devices.size == 8


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("rows=8", "'rows' is none of the axes data, fsdp, tensor"),
        ("fsdp", "the size of fsdp is ''"),
        ("fsdp=two", "the size of fsdp is 'two'"),
        ("fsdp=0,data=8", "the size of fsdp is '0'"),
        ("fsdp=-8", "the size of fsdp is '-8'"),
        ("fsdp=2,fsdp=4", "fsdp is given twice"),
        ("data=2,fsdp=2", "it takes 4 devices and there are 8"),
        ("", "'' is none of the axes"),
    ],
)
def test_another_mesh_is_refused_in_one_line(flag, reason):
    with pytest.raises(SystemExit) as caught:
        program(f"--mesh={flag}")
    said = str(caught.value)
    assert f"--mesh = {flag}: " in said
    assert reason in said
    assert "Write AXIS=SIZE pairs" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--coordinator", "here:1"], "--coordinator = here:1.*--processes, --process"),
        (["--processes", "2"], "--processes = 2.*--coordinator, --process"),
        (
            ["--coordinator", "here:1", "--processes", "2", "--process", "2"],
            "--process = 2.*from 0 to 1",
        ),
        (
            ["--distributed", "--coordinator", "here:1", "--processes", "2"]
            + ["--process", "1"],
            "--distributed = True.*--coordinator.*by itself",
        ),
        (["--batch", "12"], "--batch = 12.*8 equal parts.*multiple of 8"),
        (["--data", "nowhere"], "--data = nowhere.*no such folder"),
    ],
)
def test_other_flags_that_cannot_be_met(flags, said):
    with pytest.raises(SystemExit, match=said):
        program(*flags)


def program(*flags):
    import pod_train

    pod_train.main(list(flags))


def test_matrices_are_cut_and_vectors_are_not(pod_training):
    specs = {
        "query/kernel": P("fsdp", "tensor"),
        "out/kernel": P("tensor", None, "fsdp"),
        "up/kernel": P("fsdp", "tensor"),
        "down/kernel": P("tensor", "fsdp"),
        "embed/embedding": P("fsdp", "tensor"),
        "lm_head/kernel": P("fsdp", "tensor"),
        "mlp_norm/scale": P(),
        "count": P(),
    }
    found = {}
    flat = jax.tree_util.tree_leaves_with_path(pod_training(2, 2, 2).abstract)
    for path, leaf in flat:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for end in specs:
            if name.removesuffix("/value").endswith(end):
                found.setdefault(end, set()).add(leaf.sharding.spec)
    # Parameter and moments alike: a set of one spec for each.
    assert found == {end: {spec} for end, spec in specs.items()}


def test_the_first_state_is_cut_and_the_same_on_every_mesh(pod_training):
    states = [pod_training(*shape).create() for shape in ((1, 1, 1), (2, 2, 2))]
    for leaf, like in zip(
        jax.tree.leaves(states[1]),
        jax.tree.leaves(pod_training(2, 2, 2).abstract),
        strict=True,
    ):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_leaves_that_cannot_be_cut_are_all_named(pod_modules):
    from pod.run import GPTConfig
    from pod.training import Training
    from usage import UsageError

    with pytest.raises(UsageError) as caught:
        Training(GPTConfig(**MODEL), mesh_of(1, 1, 8), 0.02, 0)
    said = str(caught.value)
    assert "--mesh = data=1,fsdp=1,tensor=8" in said
    for name in ("query", "key", "value", "out"):
        assert f"blocks/0/attention/{name}/kernel" in said
    assert "up" not in said
    assert "--heads" in said


def test_only_a_tpu_is_told_of_its_options():
    from pod.training import options_for
    from usage import UsageError

    option = {"xla_tpu_enable_async_all_to_all": "true"}
    assert options_for("tpu", overlap=True) == option
    assert options_for("tpu", overlap=False) is None
    assert options_for("cpu", overlap=False) is None
    with pytest.raises(UsageError, match="--overlap"):
        options_for("cpu", overlap=True)


@pytest.mark.parametrize("shape", [(2, 4, 1), (8, 1, 1), (2, 2, 2), (1, 2, 4)])
@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_a_batch_does_not_depend_on_the_number_of_hosts(shape, hosts, pod_text):
    from pod.feed import rows_of, windows
    from pod.layout import BATCH

    sharding = NamedSharding(mesh_of(*shape), BATCH)
    expected = pod_text.batch(3, 5, SIZE, CONTEXT)
    read = set()
    for devices in np.array_split(sharding.mesh.devices.ravel(), hosts):
        rows = rows_of(sharding, list(devices), SIZE)
        assert len(rows) <= max(SIZE // hosts, SIZE // (shape[0] * shape[1]))
        ours = windows(pod_text, 3, 5, SIZE, CONTEXT, rows)
        np.testing.assert_array_equal(ours, expected[rows])
        read |= set(rows.tolist())
    assert read == set(range(SIZE))


def test_a_batch_is_assembled_in_order(pod_text):
    from pod.feed import Feed
    from pod.layout import batch_sharding

    sharding = batch_sharding(mesh_of(2, 2, 2), SIZE)
    batch = Feed(pod_text, sharding, 3, SIZE, CONTEXT).batch(5)
    assert batch.sharding == sharding
    np.testing.assert_array_equal(batch, pod_text.batch(3, 5, SIZE, CONTEXT))


def test_checksums_see_every_bit_and_no_mesh(rng):
    from pod.digests import checksums, sha256

    value = rng.normal(size=(8, 16)).astype(np.float32)
    flipped, swapped = value.copy(), value.copy()
    flipped.view(np.uint32)[3, 5] ^= 1
    swapped[0, 0], swapped[7, 15] = value[7, 15], value[0, 0]

    def of(x, spec):
        x = jax.device_put(x, NamedSharding(mesh_of(2, 2, 2), spec))
        return checksums(x)[0], sha256(x)

    whole = of(value, P())
    assert of(value, P("fsdp", "tensor")) == whole
    assert of(value, P(None, ("data", "fsdp"))) == whole
    for other in (flipped, swapped, -value):
        assert not set(of(other, P("fsdp"))) & set(whole)
