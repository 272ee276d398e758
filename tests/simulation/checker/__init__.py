"""What must hold, whatever happens: every publication once and in order, or a gap is told; not a byte after a revoke.

The checker knows what was published from the simulated Redis (everything that is added to a room's log passes by it),
and sees every frame at the moment it is written, which is where its place among the others is decided.
"""
