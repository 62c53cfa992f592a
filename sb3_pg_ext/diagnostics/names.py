"""What a command line has to know before anything heavy is loaded."""

TESTBED_NAMES = ("bandit", "garnet", "lqr", "search")
#: Episodes M of an estimate, estimates K of each number of episodes, and the fewest K from which anything can be said.
SAMPLES, REPEATS, MIN_REPEATS = (16, 64, 256), 200, 8
