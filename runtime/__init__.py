"""The run on disk and its safety: checkpoint, sharded, trust, guard, memory, report, curve."""
