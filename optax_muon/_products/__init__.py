"""The matrix products of the iteration, one module a backend; `xla` is the contract.

A backend brings its own form of a stack x [..., n, m] and of a symmetric matrix s
[..., n, n], and these functions under the same names:

  split(x), join(x)         from an array to the backend's form, and back
  gram(x)                   x x^T
  symmetric_product(s, t)   alpha s t + weighted matrices, for s and t that commute
  product(s, x)             s x + weighted matrices
  shifted(s, a)             s + a I, where the Gram form is to run

Sums are returned unrounded, in the accumulation dtype (float32 for 16-bit operands):
the caller finishes its epilogue there and rounds once. Both forms are pytrees of
arrays, so that a caller can round them with `jax.tree.map` and carry them in a loop.
"""
