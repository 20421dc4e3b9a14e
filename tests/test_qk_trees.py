"""QK-clip: what `max_logits` may look like, and what cannot be clipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from optax_muon import (
    QKLeaf,
    clip_qk,
    flax_qk_leaves,
    mla_qk_leaves,
    qk_clip,
    stacked,
)
from tests.qk_cases import (
    CONTENT,
    HEAD_DIM,
    RANK,
    ROTARY,
    VALUE,
    D,
    attention,
    blocks,
    logits_of_blocks,
)
from tests.recipes import assert_identical


class TestMaxLogits:
    def test_forms(self, rng):
        """Nested, NNX, flat with joined names or tuples, at the path itself."""
        params, nested = blocks(rng), logits_of_blocks(rng)
        expected = clip_qk(params, nested)
        paths = traverse_util.flatten_dict(nested)
        for form in (
            paths,
            traverse_util.flatten_dict(nested, sep="/"),
            traverse_util.flatten_dict(nested, sep="."),
            {"/".join(path[:-1]): value for path, value in paths.items()},
            {"blocks": list(nested["blocks"].values())},
            nnx.State(jax.tree.map(nnx.Intermediate, nested)),
            nnx.State(jax.tree.map(lambda x: nnx.Intermediate((x / 2, x)), nested)),
            jax.tree.map(lambda x: (x, 0.5 * x), nested),  # called twice
            jax.tree.map(lambda x: (jnp.nan * x, x), nested),
        ):
            assert_identical(clip_qk(params, form), expected)

    def test_flat_parameters(self, rng):
        params, logits = blocks(rng), logits_of_blocks(rng)
        expected = clip_qk(params, logits)
        for sep in (None, "/", "."):
            found = clip_qk(traverse_util.flatten_dict(params, sep=sep), logits)
            assert_identical(found, traverse_util.flatten_dict(expected, sep=sep))

    def test_the_innermost_attention(self, rng):
        """An attention inside another's module keeps its own logits."""
        params = attention(rng) | {"inner": attention(rng)}
        logits = {
            "max_logits": jnp.full(4, 1.0),
            "inner": {"op": {"max_logits": jnp.full(4, 400.0)}},
        }
        clipped = clip_qk(params, logits)
        inner = clipped.pop("inner")
        assert_identical(clipped, {k: v for k, v in params.items() if k != "inner"})
        assert not np.allclose(inner["key"]["bias"], params["inner"]["key"]["bias"])

    def test_errors_come_all_at_once(self, rng):
        params, logits = blocks(rng), logits_of_blocks(rng)
        logits["blocks"]["2"] = logits["blocks"].pop("1")
        logits["blocks"]["0"]["attn"] |= {"attention_weights": jnp.ones((3, 4, 5, 5))}
        logits["blocks"]["0"]["attn"]["max_logits"] = jnp.ones((2, 4))
        with pytest.raises(ValueError, match="max_logits does not fit") as caught:
            clip_qk(params, logits)
        assert str(caught.value).splitlines()[1:-1] == [
            "  blocks/0/attn/attention_weights: an entry that no attention uses",
            "  blocks/2/attn/max_logits: an entry that no attention uses",
            "  blocks/0/attn: an entry of shape (2, 4), expected [*layers, heads] = "
            "(4,)",
            "  blocks/1/attn: an attention without entry",
        ]

    @pytest.mark.parametrize("shape", [(), (2,), (8,), (1, 4)], ids=str)
    def test_numbers_of_heads(self, rng, shape):
        with pytest.raises(ValueError, match=r"expected \[\*layers, heads\] = \(4,\)"):
            clip_qk(attention(rng, 4, 2), jnp.ones(shape))

    def test_missing(self, rng):
        params = blocks(rng)
        tx = qk_clip()
        for rest, extra in (((params,), {}), ((), {"max_logits": {}})):
            with pytest.raises(ValueError, match="pass update"):
                tx.update(params, tx.init(params), *rest, **extra)
        with pytest.raises(ValueError, match="an attention without entry"):
            tx.update(params, tx.init(params), params, max_logits={})


class TestRules:
    def test_leaves_that_cannot_be_clipped_come_all_at_once(self, rng):
        params = {
            "normed": attention(rng) | {"query_ln": {"scale": jnp.ones(HEAD_DIM)}},
            "scanned": jax.tree.map(lambda x: x[None], attention(rng)),
            "uneven": attention(rng, 4, 3),
            "lone": {"key": attention(rng)["key"]},
            "lora": attention(rng) | {"key": {"lora_a": jnp.ones((D, 2))}},
            "differ": attention(rng)
            | {
                "key": {
                    "kernel": jnp.ones((D, 4, HEAD_DIM)),
                    "bias": jnp.ones((2, HEAD_DIM)),
                }
            },
        }
        with pytest.raises(ValueError, match="qk_clip cannot clip") as caught:
            qk_clip().init(params)
        lines = str(caught.value).splitlines()[1:-1]
        assert [line.split(":")[0].split("  (")[0].strip() for line in lines] == [
            "lora/key/lora_a",
            "normed/query_ln/scale",
            "scanned/key/bias",
            "scanned/key/kernel",
            "scanned/query/bias",
            "scanned/query/kernel",
            "differ",
            "lone",
            "lora",
            "uneven",
        ]
        assert "3 key heads do not divide 4 query heads" in lines[-1]
        assert "normalised after" in lines[1]
        assert "4 query heads" not in lines[6]
        assert "[4] query heads, [2, 4] key heads" in lines[6]

    def test_stacks_that_disagree(self, rng):
        params = attention(rng, bias=False)
        params["query"]["kernel"] = jnp.ones((2, D, 4, HEAD_DIM))
        rule = stacked("query", inner=flax_qk_leaves)
        with pytest.raises(ValueError, match=r"layers \[\(\), \(2,\)\]"):
            qk_clip(rule=rule).init(params)

    def test_patterns_that_match_nothing(self, rng):
        params = attention(rng, bias=False)
        rule = stacked("layers", inner=flax_qk_leaves)
        with pytest.raises(
            ValueError, match=r"matches no parameter: stacked\('layers'\)"
        ):
            qk_clip(rule=rule).init(params)
        params["query"]["kernel"] = jnp.ones((2, D, 4, HEAD_DIM))  # undecided, too
        with pytest.raises(ValueError, match=r"cannot clip[\s\S]*stacked\('layers'\)"):
            qk_clip(rule=rule).init(params)

    def test_axes_and_sizes_that_do_not_fit(self):
        leaf = {"w": jnp.ones((D, 4, HEAD_DIM))}
        for fields in (
            {"heads": 3},
            {"along": -4},
            {"layers": (1,)},
            {"head_width": 3},
            {"parts": (("query", 2), ("key", 2))},
            {"parts": (("query", 3), ("key", 2)), "along": -2},
        ):
            fields = {"parts": "query"} | fields
            with pytest.raises(ValueError, match=r"not (fit|tile) a leaf of shape"):
                qk_clip(rule=lambda *_, f=fields: QKLeaf("", **f)).init(leaf)

    def test_what_rules_return(self):
        leaf = {"w": jnp.ones((D, 4, HEAD_DIM))}
        with pytest.raises(ValueError, match="neither a QKLeaf nor None"):
            qk_clip(rule=lambda path, leaf: "query").init(leaf)
        with pytest.raises(ValueError, match="int32 is no real floating dtype"):
            qk_clip(rule=lambda path, leaf: QKLeaf("", "query")).init(
                {"w": jnp.ones((D, 4, HEAD_DIM), jnp.int32)}
            )
        for rule in (QKLeaf, QKLeaf("", "query")):
            with pytest.raises(TypeError, match="is no rule"):
                qk_clip(rule=rule)

    @pytest.mark.parametrize(
        ("names", "shape"),
        [
            (("q_b_proj", "weight"), (24, RANK)),
            (("q_b_proj", "kernel"), (2, RANK, 4, 6)),
            (("q_rope", "kernel"), (RANK, 8)),
            (("kv_b_proj", "kernel"), (RANK, 4, 8)),
            (("kv_b_proj", "kernel"), (RANK, 30)),
        ],
        ids=str,
    )
    def test_mla_leaves_that_cannot_be_clipped(self, names, shape):
        params = {names[0]: {names[1]: jnp.ones(shape)}}
        rule = mla_qk_leaves(content=CONTENT, rotary=ROTARY, value=VALUE)
        with pytest.raises(ValueError, match=f"cannot clip.*\n  {names[0]}"):
            qk_clip(rule=rule).init(params)

    @pytest.mark.parametrize("size", [0, -1, 2.0, None])
    def test_mla_sizes(self, size):
        sizes = {"content": CONTENT, "rotary": ROTARY, "value": VALUE}
        for name in sizes:
            with pytest.raises(ValueError, match=rf"^{name}=.* must be a positive int"):
                mla_qk_leaves(**(sizes | {name: size}))

    @pytest.mark.parametrize(
        ("fields", "error"),
        [
            ({"attention": ("a", "b")}, TypeError),
            ({"parts": "value"}, ValueError),
            ({"parts": (("query", 0),)}, ValueError),
            ({"parts": ()}, ValueError),
            ({"heads": 1.0}, TypeError),
            ({"layers": (True,)}, TypeError),
            ({"group": 0}, ValueError),
            ({"head_width": None}, ValueError),
        ],
    )
    def test_fields(self, fields, error):
        with pytest.raises(error, match="|".join(fields)):
            QKLeaf(**({"attention": "", "parts": "query"} | fields))

    def test_a_leaf_is_hashable_and_no_function(self):
        leaf = QKLeaf("a", [["query", 2], ["key", 2]], layers=[0])
        assert hash(leaf) == hash(QKLeaf("a", leaf.parts, layers=(0,)))
        assert not callable(leaf)

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"tau": 0.0}, ValueError),
            ({"tau": -1}, ValueError),
            ({"tau": "100"}, TypeError),
            ({"tau": jnp.ones(2)}, ValueError),
            ({"alpha": 1.5}, ValueError),
            ({"alpha": -0.5}, ValueError),
            ({"alpha": lambda count: 0.5}, TypeError),
        ],
    )
    def test_arguments(self, arguments, error):
        name = next(iter(arguments))
        with pytest.raises(error, match=name):
            qk_clip(**arguments)
        with pytest.raises(error, match=name):
            clip_qk({}, {}, **arguments)

    def test_no_schedule_outside_an_optimizer(self):
        with pytest.raises(TypeError, match="no count of steps"):
            clip_qk({}, {}, tau=lambda count: 1.0)
