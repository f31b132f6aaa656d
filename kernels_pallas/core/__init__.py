"""The parts that all operators share: checks, dispatch, configs, launching, timing."""
