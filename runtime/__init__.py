"""The run on disk and its safety: checkpoint, sharded, trust, origin, guard, memory, report, curve."""
