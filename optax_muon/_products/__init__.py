"""The matrix products of the iteration, one module a backend; `xla` is the contract.

A backend supplies `product` and `symmetric_product` of `xla` under the same names.
"""
