"""Namespaces of a product, as tests need them: `/ops/` for supervisors, with rooms of its own, and two variations."""
