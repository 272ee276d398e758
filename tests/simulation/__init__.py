"""The real code of bridges and instances in a simulated world, where a seed decides everything that happens.

The method is FoundationDB's and TigerBeetle's (deterministic simulation testing). Bridges, channel layer,
subscriptions, pipes, redis-py and consumers are the real ones, unmodified. What they run on is simulated:

- `clock`    time, which jumps to whatever happens next
- `host`     an event loop each: a process that can be paused, be late, or be killed between any two callbacks
- `network`  connections that delay, split, stall and break
- `redis`    a small Redis that runs our Lua scripts, and can lose everything, or what was written last
- `clients`  people at browsers: they come, read slowly, vanish, come back
- `sockets`  the servers' ends of their WebSockets
- `system`   instances and bridges
- `backbone` what is added to the bus
- `visits`   what clients do
- `faults`   what breaks
- `stage`    all that these share
- `world`    puts all of it together and decides, by the seed, what happens, and whether instances have bridges inside
- `checker`  knows what was published, sees every frame that a host writes, and raises `Violation`

A run that fails says how to repeat it, exactly:

    python -m tests.simulation --seed 7 --steps 20000
    python -m tests.simulation --seed 7 --steps 20000 --verbose      # with everything that happened

`--seeds 40` tries that many seeds, `--mutation NAME` breaks the code in a known way first (`mutations.py`).
"""
