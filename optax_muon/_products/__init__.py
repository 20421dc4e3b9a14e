"""The matrix products of the iteration, one module a backend; `xla` is the contract.

A backend supplies the two functions of `xla` under the same names.
"""
