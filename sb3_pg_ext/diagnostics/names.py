"""What a command line has to know before anything heavy is loaded."""

TESTBED_NAMES = ("bandit", "garnet", "lqr", "search")
#: Episodes M of an estimate, estimates K of each number of episodes, and the fewest K from which anything can be said.
SAMPLES, REPEATS, MIN_REPEATS = (16, 64, 256), 200, 30
#: The fewest episodes M K of which a mean is judged: products of ratios are so skewed that those of fewer look biased.
MIN_EPISODES = 1500
