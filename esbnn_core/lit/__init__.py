"""What the Lightning tasks share: command line, callbacks, data helpers, schedules."""
