"""Signatures of public functions: every array has one, and the tests do check them."""

import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Float, Int

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.layers import norm
from seqmodels.models.classifier import SequenceClassifier
from seqmodels.models.lm import LanguageModel
from seqmodels.ops import decay, hippo, segments, triangular
from seqmodels.ops.dispatch import Implementation
from seqmodels.ops.linear_attention import IMPLEMENTATIONS
from tests.signatures import SignatureError, checked, is_shaped, parts

NO_ARRAYS = {  # public functions that neither take nor return one
    "interpret_kernels": "a context manager",
    "delay_error": "numbers in, a number out",
    "step_for_lag": "numbers in, a number out",
    "timescale": "a name in, a number out",
}


def public_functions(package):
    names = (name for name in vars(package) if not name.startswith("_"))
    return {name: value for name in names if inspect.isfunction(value := getattr(package, name))}


@pytest.mark.parametrize("package", [ops, hippo], ids=["ops", "hippo"])
def test_public_ops_have_signatures(package):
    functions = {name: value for name, value in public_functions(package).items() if name not in NO_ARRAYS}
    assert len(functions) > 5
    for name, function in functions.items():
        hints = typing.get_type_hints(function, include_extras=True)
        missing = [argument for argument in inspect.signature(function).parameters if argument not in hints]
        assert not missing, f"{name}: {missing} have no annotation"
        found = [part for hint in hints.values() for part in parts(hint)]
        bare = [part for part in found if part in (jax.Array, np.ndarray)]
        assert not bare, f"{name}: a bare {bare[0].__name__}; give its dtype and axes, as in Float[Array, 'B T D']"
        result = hints["return"]
        assert any(map(is_shaped, parts(result))), f"{name}: returns {result}, expected a jaxtyping annotation"


def test_signatures_are_in_force():
    """The functions that tests call are the checked ones."""
    methods = [LanguageModel.__call__, LanguageModel.hidden, SequenceClassifier.__call__, norm.RMSNorm.__call__]
    helpers = [norm.l2_norm, segments.regroup, decay.scores, triangular.join_lower]
    public = [*public_functions(ops).values(), *public_functions(hippo).values()]
    for function in [*methods, *helpers, *(f for f in public if f.__name__ not in NO_ARRAYS)]:
        assert hasattr(function, "__wrapped__"), function


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.grad], ids=["call", "jit", "grad"])
def test_a_wrong_result_is_caught(monkeypatch, transform):
    """An implementation that forgets a head, a column of the state, or the state's dtype."""
    q, v = jnp.ones((1, 4, 1, 2)), jnp.ones((1, 4, 3, 5))

    def total(v):
        return ops.linear_attention(q, q, v, impl="reference")[0].sum()

    out, state = ops.linear_attention(q, q, v, impl="reference")
    for wrong in [(out[:, :, :2], state), (out, state[..., :4]), (out, state.astype(jnp.int32))]:
        broken = Implementation(lambda *args, wrong=wrong, **options: wrong)
        monkeypatch.setitem(IMPLEMENTATIONS, "reference", broken)
        with pytest.raises(SignatureError, match=r"linear_attention: return is not .* given q: float32\[1, 4, 1, 2\]"):
            transform(total)(v)


def test_the_message_of_the_op_comes_first():
    """An argument that an op refuses gets the op's own line; one that it lets pass is found by the signature."""
    q, v = jnp.ones((1, 4, 1, 2)), jnp.ones((1, 4, 3, 5))
    with pytest.raises(ValueError, match=r"k has shape \(1, 3, 1, 2\), expected \[B,T,Hk,K\] with B=1, T=4"):
        ops.linear_attention(q, q[:, :3], v)

    @checked
    def lax(a: Float[Array, "B T"], b: Int[Array, "B"] | None = None) -> Float[Array, "T"]:
        return a[0]

    rows = jnp.ones((2, 3))
    assert lax(rows).shape == lax(np.ones((2, 3)), jnp.arange(2)).shape == jax.vmap(lax)(rows[None])[0].shape == (3,)
    for bad in (jnp.arange(3), jnp.ones(2), 1):
        with pytest.raises(SignatureError, match="lax: b is not"):
            lax(rows, bad)
    with pytest.raises(SignatureError, match="lax: a is not"):
        lax(rows[None, 0] > 0)
